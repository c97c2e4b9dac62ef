"""A notebook, cell by cell (# %%): rows of the datasets library, a loss term and a callback of one's own."""

# %%
from datasets import load_dataset
from transformers import TrainerCallback

from smart_train import SmartEncoder, SmartTrainer, TrainingArguments, losses

rows = load_dataset("csv", data_files="pairs.csv")["train"]

# %%
import torch  # noqa: E402

from smart_train.losses import LossTerm  # noqa: E402


class Centred(LossTerm):
    """Draw the mean of the pooled document vectors to zero."""

    name = "centred"
    reads = ("embeddings.pooled",)
    trains = ("pooled",)

    def forward(self, scores, labels, embeddings):
        return embeddings.documents.pooled.mean(0).square().sum()


# %%
class Seen(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        Seen.steps += 1


# %%
model = SmartEncoder("base", lora={"r": 4})
arguments = TrainingArguments("runs/own", max_steps=3, per_device_train_batch_size=4, use_cpu=True)
loss = losses.Joint(losses.Pooled(), losses.Late(), Centred(weight=0.1))
trainer = SmartTrainer(model, arguments, rows, loss=loss, callbacks=[Seen()])
trainer.train()

# %%
assert Seen.steps == 3
logged = [entry for entry in trainer.state.log_history if "loss/centred" in entry]
assert logged and all(torch.isfinite(torch.tensor(entry["loss/centred"])) for entry in logged)
len(logged)
