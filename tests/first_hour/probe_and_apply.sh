# Which layer to read, without training; applied, and measured with what was chosen.
set -e
smart-train probe beir --model base --output results/probe --weights 0.5 1 2 --apply
smart-train evaluate beir --model base --adapter results/probe/encoder
