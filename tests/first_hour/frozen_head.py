"""A head of 32 dimensions on a frozen base: small token vectors, pooled vectors as before."""

import csv

from smart_train import SmartEncoder, SmartTrainer, TrainingArguments

with open("pairs.csv", newline="") as stream:
    rows = list(csv.DictReader(stream))
model = SmartEncoder("base", adapter={"kind": "frozen"}, late={"head": "linear", "dim": 32})
before = model.encode_queries([rows[0]["question"]])
arguments = TrainingArguments("runs/head", max_steps=3, per_device_train_batch_size=4, use_cpu=True)
trainer = SmartTrainer(model, arguments, rows)
trainer.train()
folder = trainer.save_verified("runs/head/adapter")
after = SmartEncoder.from_pretrained(folder).encode_queries([rows[0]["question"]])
