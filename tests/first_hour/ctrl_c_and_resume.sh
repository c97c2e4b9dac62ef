# Ctrl-C ends a run after a checkpoint with status 75; the same command with one more key goes on from there.
set -m # jobs of a script ignore Ctrl-C without it
smart-train new mine --base base --data pairs.csv || exit
long="training.num_train_epochs=40 training.eval_steps=1000 training.save_steps=1000"
smart-train train mine.yaml $long >log &
for _ in $(seq 600); do
  grep -q '^step [3-9]' log && break
  sleep 0.1
done
kill -INT $!
wait $!
status=$?
[ $status -eq 75 ] || { echo "status $status"; tail log; exit 1; }
smart-train train mine.yaml $long training.resume_from_checkpoint=true
