# A BEIR folder: the base, a run, the adapter, and the difference between them.
set -e
smart-train evaluate beir --model base --output results/before
smart-train new beir --base base --data beir
smart-train train beir.yaml
smart-train evaluate beir --adapter runs/beir/adapter --output results/after --baseline results/before
