#!/bin/bash
# torchrun: start the processes without accelerate. DDP, or DeepSpeed if the recipe names its settings.
#
# When     your machines do not use accelerate, or a scheduler sets torchrun's variables.
# Costs    bytes per parameter as in ddp.yaml (frozen 2 in bfloat16, trained 20); with training.deepspeed= as in zero2.yaml,
#          zero3.yaml or zero3_offload.yaml.
# Launch   launch/torchrun.sh recipes/visdoc_lora.yaml                               all GPUs of this machine
#          launch/torchrun.sh recipes/visdoc_lora.yaml training.deepspeed=launch/zero3.json
#          PROCESSES=2 launch/torchrun.sh recipes/quickstart.yaml training.use_cpu=true
#          MACHINES=2 MACHINE=0 MASTER_ADDR=10.0.0.1 launch/torchrun.sh ...   on every machine, with its own rank

if [ $# -eq 0 ]; then
  echo "usage: launch/torchrun.sh RECIPE [key=value ...]" >&2
  exit 2
fi
where=(--standalone)
if [ "${MACHINES:-1}" -gt 1 ]; then
  where=(--nnodes="$MACHINES" --node_rank="${MACHINE:?is the rank of this machine, 0 for the first}"
    --master_addr="${MASTER_ADDR:?is the address of machine 0}" --master_port="${MASTER_PORT:-29500}")
fi
exec torchrun "${where[@]}" --nproc_per_node="${PROCESSES:-gpu}" "$@"
