#!/bin/bash
# Slurm: one launcher on each machine, all its GPUs. Before the time limit it saves, requeues itself and resumes.
#
# When     Slurm assigns your machines. For one machine: sbatch --nodes=1.
# Costs    bytes per parameter as in the launch file: CONFIG=launch/ddp_nodes.yaml (frozen 2 in bfloat16, trained 20; the
#          default) or launch/zero3_nodes.yaml (frozen 2 / W, trained 20 / W on each of W GPUs).
# Launch   from the folder above launch/, in an environment with smart-train; set nodes, GPUs and time as needed:
#          sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh recipes/visdoc_lora.yaml training.learning_rate=2e-4
#          CONFIG=launch/zero3_nodes.yaml OUTPUT=runs/mine sbatch launch/slurm.sh recipes/visdoc_lora.yaml
# Needs    recipe, data, model and OUTPUT at the same paths on all machines.
# Stops    five minutes before the time limit (and when the job is preempted) the processes get SIGTERM, save a
#          checkpoint and write OUTPUT/stopped.json. The job is requeued under its number and resumes there. If a
#          machine fails, Slurm itself requeues the job, and it resumes from the last checkpoint.

#SBATCH --job-name=smart-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

if [ $# -eq 0 ]; then
  echo "usage: sbatch launch/slurm.sh RECIPE [key=value ...]" >&2
  exit 2
fi
nodes=${SLURM_JOB_NUM_NODES:?is not set: start this with sbatch}
gpus=${PROCESSES:-${SLURM_GPUS_ON_NODE:?is not set: ask for GPUs (--gpus-per-node), or set PROCESSES, per machine}}
export CONFIG=${CONFIG:-launch/ddp_nodes.yaml}
export OUTPUT=${OUTPUT:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}
export NODES=$nodes ALL=$((nodes * gpus)) PORT=$((20000 + SLURM_JOB_ID % 20000))
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD

again=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && compgen -G "$OUTPUT/checkpoints/checkpoint-*/checkpoint.json" >/dev/null; then
  again=(training.resume_from_checkpoint=true)
fi
rm -f "$OUTPUT/stopped.json"  # of the run before: only the file of this run counts below

# Each machine's launcher passes the signal on to its processes and waits this many seconds for their checkpoint. Its
# default would kill them after 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=290
on_machine='exec accelerate launch --config_file "$CONFIG" --num_machines "$NODES" --num_processes "$ALL" \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD" --main_process_port "$PORT" "$@"'
trap : TERM  # this shell must survive the signal, to requeue the job
srun --nodes="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c "$on_machine" on_machine "$@" \
  output="$OUTPUT" "${again[@]}"
status=$?
if [ -f "$OUTPUT/stopped.json" ]; then
  echo "stopped before the time limit, see $OUTPUT/stopped.json; requeued"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
