"""docs/recipes.md, made from the recipe's dataclasses and their comments; and the shipped recipes as templates.

Knows: the source of blocks.py, the recipes' files.  Does not know: models, data, training.
``python -m smart_train.recipe_docs docs/recipes.md`` writes the page; a test keeps it up to date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import re
import sys
import tokenize
import typing
from importlib.metadata import files
from pathlib import Path
from textwrap import fill
from typing import Any

from smart_train import blocks
from smart_train.objective.schedule import SCHEDULED
from smart_train.recipe import BOOT
from smart_train.recipe_training import MOVED
from smart_train.recipe_types import described

PAGE = """\
# Recipes

<!-- made by `python -m smart_train.recipe_docs docs/recipes.md` from smart_train/blocks.py: change it there -->

A recipe is one YAML file: what is trained, on what, how, and what is measured. Every key has a default; a recipe
names what differs.

    accelerate launch recipes/quickstart.yaml                       # a recipe with the boot line is its own program
    accelerate launch recipes/quickstart.yaml training.max_steps=2  # overrides: key=value, the value is YAML
    accelerate launch recipes/quickstart.yaml 'late.layer=[4,-1]' data.limit=null
    smart-train train mine.yaml                                     # any recipe, with or without that line
    accelerate launch -m smart_train train mine.yaml
    smart-train new mine --from text_lora                           # a commented recipe to start from

## The boot line

`accelerate launch FILE` runs `python FILE`. So the first line of a shipped recipe is Python, starts the run and opens a
raw string; YAML follows after `---`; the last line, a comment to YAML, closes the string:

    {boot}
    ---
    model: ...
    # {quotes}

YAML tools see two documents, of which the last one is the recipe. Backslashes are safe (the string is raw); three
double quotes inside the recipe are not, and are refused. Workers that import the file again start nothing.

## Errors

Everything that can be known without loading a model is checked first, and every problem is told at once, with file,
line, key and what to do; the exit status is 2. (accelerate adds a traceback of its own below; `accelerate launch -q`
leaves it out.) Types are strict: `"0.05"` is no number. `1e-4` is one here, though
YAML 1.1 reads it as text; `no`, `yes`, `on` and `off` are text, so write `true` or `false`.

    recipes/mine.yaml, line 12: late.lyer: there is no such key, the nearest is late.layer; write late.layer, or ...

Checked against the model's configuration (layers, widths, positions, image side), against the data (columns, files,
hard negatives, a teacher's scores), against the number of processes where a launcher has said it (`WORLD_SIZE`), and
by trying the values of `training` on TrainingArguments. Not checked before the run: what only a
device, a DeepSpeed engine or an FSDP wrapping would refuse.

## Three sizes of a batch

- `training.per_device_train_batch_size`: pairs per GPU and loss, in one pass. With `objective.gather` the documents of
  all GPUs are negatives on each.
- `objective.batch`: pairs per loss over all GPUs, instead of the former. Gradients are cached, so that memory follows a
  chunk (`objective.chunk_rows`, `objective.chunk_tokens`), and the gradient is that of one pass over the whole batch;
  the price is a second forward.
- `training.gradient_accumulation_steps`: losses per step. k losses of b pairs each are not one loss of k x b pairs: a
  pair has the negatives of its own b alone, and the step is the mean of k smaller tasks. For more negatives raise
  `objective.batch`; both together are k losses of `objective.batch` pairs.

## Weights that change

`objective.schedule` names weights and gives each a line through points [share of training, value]; before the first
and after the last point the value stays. What stands at the key itself plays no part then.

    objective:
      schedule:
        late.weight: [[0, 0], [0.3, 1]]   # grows for the first third
        diversity: [[0.5, 0.1], [1, 0]]

{scheduled}
An override writes `'objective.schedule.late.weight=[[0,0],[1,1]]'`.

## Shipped

{shipped}
## Keys

{blocks}
## training

The names are those of transformers' TrainingArguments; and one of our own:

- `training.head_learning_rate` (a number or null, default `null`): learning rate of the late head and the layer mix;
  null = learning_rate. A head that starts new wants about ten times the backbone's.

Names that are refused, and what to write:

| name | instead |
|---|---|
{moved}
"""


def comments(cls: Any) -> dict[str, str]:
    """Field -> its comment in the source, which is its documentation."""
    source = inspect.getsource(cls)
    ends: dict[int, str] = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno:
            ends[node.end_lineno] = node.target.id
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    notes = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {name: notes.get(line, "") for line, name in ends.items()}


def rows(block: Any, prefix: str) -> list[str]:
    """Markdown rows of the keys of a block at its defaults; the keys of inner blocks follow them."""
    hints, notes = typing.get_type_hints(type(block)), comments(type(block))
    out = []
    for name, hint in hints.items():
        value = getattr(block, name)
        if dataclasses.is_dataclass(hint):
            out.append(f"| `{prefix}{name}` | a block | | {notes[name]} |")
            out += rows(value, f"{prefix}{name}.")
        else:
            out.append(f"| `{prefix}{name}` | {described(hint)} | `{json.dumps(value)}` | {notes[name]} |")
    return out


def page() -> str:
    """The whole of docs/recipes.md."""
    recipe, notes = blocks.Recipe(), comments(blocks.Recipe)
    top = [row for row in rows(recipe, "") if row.split("`")[1] in ("name", "output")]
    parts = [
        f"### {field.name}\n\n{notes[field.name]}\n\n{HEAD}" + "\n".join(rows(block, f"{field.name}.")) + "\n"
        for field in dataclasses.fields(recipe)
        if dataclasses.is_dataclass(block := getattr(recipe, field.name))
    ]
    shown = "".join(f"- `recipes/{name}.yaml`: {summary(path)}\n" for name, path in sorted(shipped().items()))
    return PAGE.format(
        boot=BOOT,
        quotes='"' * 3,
        scheduled=fill("It may name " + ", ".join(f"`{name}`" for name in SCHEDULED) + ".", 118),
        shipped=shown,
        blocks=HEAD + "\n".join(top) + "\n\n" + "\n".join(parts),
        moved="\n".join(f"| `{name}` | {fix} |" for name, fix in MOVED.items()),
    )


HEAD = "| key | type | default | what it buys |\n|---|---|---|---|\n"


def shipped() -> dict[str, Path]:
    """Name -> file of the recipes that come with this package: beside it in a checkout, else where pip puts data."""
    beside = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))
    if beside:
        return {path.stem: path for path in beside}
    installed = (Path(str(file.locate())) for file in files("smart-train") or [] if file.match("recipes/*.yaml"))
    return {path.stem: path.resolve() for path in sorted(installed)}


def summary(path: Path) -> str:
    """The first sentence of a recipe's opening comment."""
    opening = next(line for line in path.read_text(encoding="utf8").splitlines() if line.startswith("# "))
    return opening.removeprefix("# ")


def written_for(template: Path, path: Path) -> str:
    """A shipped recipe's text under another name: its name, its output folder and its launch commands."""
    text = template.read_text(encoding="utf8")
    text = text.replace(f"recipes/{template.stem}.yaml", path.as_posix())
    text = re.sub(rf"(?m)^name: {re.escape(template.stem)}$", f"name: {path.stem}", text)
    return text.replace(f"runs/{template.stem} ", f"runs/{path.stem} ")


def main(path: str) -> None:
    Path(path).write_text(page(), encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/recipes.md")
