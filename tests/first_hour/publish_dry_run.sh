# What would be uploaded, with the card, and nothing is sent.
set -e
smart-train new mine --base base --data pairs.csv
smart-train train mine.yaml
smart-train publish runs/mine --repo me/mine --license apache-2.0 --dry-run
