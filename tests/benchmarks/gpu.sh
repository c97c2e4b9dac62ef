#!/usr/bin/env bash
# What one training step of a 2B page embedder costs on one GPU, written as a JSON.
#
# Does     builds a Qwen3-VL of 2B size with random weights (gpu_model.py: nothing is downloaded), draws 1,536 pages, and
#          runs 12 training steps of each contender, every one in a process of its own: our trainer and
#          sentence-transformers' (pooled, multi-vector), gradient caching off and on, fused MaxSim kernels on and off.
#          bf16, LoRA and activation checkpointing for all. The JSON has step time, peak memory, card, driver, versions
#          and date, and is written after every contender: nothing measured is lost.
# Needs    one Nvidia GPU with bfloat16 (Ampere or newer) and 40 GiB; 16 GiB of RAM; 12 GB of disk in $TMPDIR (or
#          --scratch); 20 minutes, an estimate: it has never run. This package with its dependencies, a torch with
#          CUDA, and for the fused kernels the extra: pip install 'smart-train[kernels]'. Nothing is installed here.
# Run      tests/benchmarks/gpu.sh gpu.json                             all contenders
#          tests/benchmarks/gpu.sh gpu.json --pairs 16 --chunk 4        on a smaller card
#          tests/benchmarks/gpu.sh gpu.json --only "ours joint, cached"
#          PYTHON=/path/to/python tests/benchmarks/gpu.sh gpu.json      another environment than .venv
# Without  a GPU: python tests/benchmarks/gpu_step.py --tiny --device cpu runs all but CUDA, on a model of 0.3 M.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
out=${1:-}
case "$out" in
  "" | -*)
    echo "usage: tests/benchmarks/gpu.sh FILE.json [options of gpu_step.py]" >&2
    exit 2
    ;;
esac
shift
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || {
  echo "there is no $python: make the environment (make environment), or name one: PYTHON=/path/to/python" >&2
  exit 1
}
command -v nvidia-smi >/dev/null || {
  echo "no nvidia-smi here, so no Nvidia GPU: run this on a machine with one; on a CPU run $here/gpu_step.py --tiny --device cpu" >&2
  exit 1
}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} # one GPU: torch's DataParallel would take more
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}           # data workers are processes
"$python" - <<'PYTHON'
import sys
import torch

if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU: install a build of torch with CUDA that fits the driver")
if not torch.cuda.is_bf16_supported(including_emulation=False):
    sys.exit(f"{torch.cuda.get_device_name()} has no bfloat16: Ampere or newer is needed")
free, total = (n / 2**30 for n in torch.cuda.mem_get_info())
print(f"{torch.cuda.get_device_name()}: {free:.0f} of {total:.0f} GiB are free")
if free < 0.9 * total:
    print("something else is on this GPU: times and memory will not be its own", file=sys.stderr)
try:
    import late_interaction_kernels  # noqa: F401
except ImportError:
    print("no fused kernels: pip install 'smart-train[kernels]'; MaxSim goes by torch's operations", file=sys.stderr)
PYTHON
exec "$python" "$here/gpu_step.py" --device cuda --json "$out" "$@"
