# Two processes on this machine, with a launch file that came with the package.
set -e
smart-train new mine --base base --data pairs.csv
accelerate launch --config_file "$(smart-train launch cpu)" mine.yaml training.use_cpu=true
