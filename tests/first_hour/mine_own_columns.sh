# Hard negatives for a table with columns of one's own, then a run that uses them.
set -e
smart-train mine pairs.csv --data query=question document=answer --model base --output data/mined -k 2 --no-max-relative
smart-train new mined --base base --data data/mined
smart-train train mined.yaml data.negatives=1
