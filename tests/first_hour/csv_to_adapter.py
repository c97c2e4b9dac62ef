"""A CSV of questions and answers becomes an adapter, which ranks the answers."""

from datasets import load_dataset

from smart_train import SmartEncoder, SmartTrainer, TrainingArguments

rows = load_dataset("csv", data_files="pairs.csv")["train"].train_test_split(test_size=4, seed=0)
model = SmartEncoder("base", lora={"r": 4})
arguments = TrainingArguments("runs/csv", max_steps=3, per_device_train_batch_size=4, use_cpu=True)
trainer = SmartTrainer(model, arguments, rows["train"], eval_dataset=rows["test"])
trainer.train()
folder = trainer.save_verified("runs/csv/adapter")

trained = SmartEncoder.from_pretrained(folder)
documents = trained.encode_documents(rows["test"]["answer"])
scores = trained.score(rows["test"]["question"], documents, mode="hybrid")
