"""Does training the late term pay over training the pooled loss alone and reading the late view for free?

    python tests/benchmarks/does_it_help.py FOLDER --start lm --data docstrings --arms pooled joint --seeds 0 1 2
    python tests/benchmarks/does_it_help.py FOLDER --report [--against pooled]

An arm is a part of a recipe: tests/benchmarks/arms/ARM.yaml.  Beside it stand the starting points (start-NAME.yaml:
model, adapter and budget) and the data (data-NAME.yaml); an arm's keys win over theirs, and ``--set`` over all.
``--arms base`` measures the untrained model.

Seed by seed every arm sees the same pairs in the same order for the same number of steps.  The hybrid's late weight is
chosen on the dev split ("w*"); figures are of the test split, which neither training nor choosing has seen.
Differences are paired by seed and query; the 95 % intervals resample both.
tests/benchmarks/docstrings.py and abstracts.py write the data once, so that all runs have the same.
Every run writes FOLDER/START-DATA-ARM-SEED.json when it ends.  A run that is there is not done again, and one that was
stopped goes on from its last checkpoint, so the same command continues after any stop.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from smart_train.config.recipe import of_words
from smart_train.config.schema import Recipe
from smart_train.evaluation.calibration import calibrate_encoded
from smart_train.evaluation.encode import encode
from smart_train.evaluation.retrieval import evaluate_encoded
from smart_train.training.run import Splits, load, make_arguments, make_trainer, untrained_encoder

ARMS = Path(__file__).parent / "arms"
VIEWS = ("pooled", "late", "hybrid", "hybrid w*")


def words(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield nested keys as a recipe's overrides: {"late": {"dim": 32}} -> late.dim=32."""
    for key, value in values.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in ("objective.schedule", "late.head"):
            yield from words(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"


def recipe_of(start: str, data: str, arm: str, seed: int, more: list[str], output: Path) -> Recipe:
    files = [
        ARMS / f"start-{start}.yaml",
        ARMS / f"data-{data}.yaml",
        *([ARMS / f"{arm}.yaml"] if arm != "base" else []),
    ]
    overrides = [word for file in files for word in words(yaml.safe_load(file.read_text(encoding="utf8")) or {})]
    fixed = [f"output={output}", f"training.seed={seed}", f"training.data_seed={seed}", "training.save_steps=20"]
    fixed += ["training.eval_strategy=no", "training.save_strategy=steps", "training.save_total_limit=1"]
    return of_words({}, [*overrides, *fixed, *more])


def measured(encoder: Any, splits: Splits) -> dict[str, Any]:
    """nDCG@10 of every query by split and view, and the late weight that dev chose."""
    encoder.eval()
    dev, test = (encode(encoder, split, batch_size=32) for split in (splits.dev, splits.test))
    plain = encoder.late.hybrid
    chosen, grid = calibrate_encoded(dev, splits.dev.qrels, plain)
    values: dict[str, Any] = {"late_weight": chosen.late, "grid": grid}
    for name, encoded, split in (("dev", dev, splits.dev), ("test", test, splits.test)):
        for hybrid, ending in ((plain, ""), (chosen, " w*")):
            result = evaluate_encoded(encoded, split.qrels, hybrid, k=[10], bootstrap=1)
            for view, metrics in result.per_query.items():
                if view == "hybrid" or not ending:
                    values[f"{name} {view}{ending}"] = metrics["ndcg@10"]
    return values


def run(start: str, data: str, arm: str, seed: int, more: list[str], folder: Path) -> dict[str, Any]:
    name = f"{start}-{data}-{arm}-{seed}"
    work = folder / "runs" / name
    recipe = recipe_of(start, data, arm, seed, more, work)
    splits = Splits(*load(recipe.data))
    found = {"start": start, "data": data, "arm": arm, "seed": seed, "set": more, "splits": splits.fingerprints()}
    if arm == "base":
        return {**found, **measured(untrained_encoder(recipe), splits)}
    args = make_arguments(recipe, work)
    trainer = make_trainer(recipe, splits, work, args)
    started = time.process_time()
    trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")) or None)
    seconds = time.process_time() - started
    found |= {"steps": trainer.state.global_step, "cpu_seconds_of_this_sitting": seconds}
    found |= measured(trainer.encoder, splits)
    return found


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf8")) for file in sorted(folder.glob("*.json"))]


def compare(a: list[dict[str, Any]], b: list[dict[str, Any]], view: str) -> tuple[list[float], float, float] | None:
    """Differences a - b, one a seed, each paired by query, and the 95 % interval of their mean.

    The interval resamples seeds and queries, both, so that a lucky seed does not pass for an effect.  None where the
    two share no seed on the same data: the docstrings are those of the installed packages, for one.
    """
    other = {(one["seed"], json.dumps(one["splits"])): one[view] for one in b}
    pairs = [(one[view], other.get((one["seed"], json.dumps(one["splits"])))) for one in a]
    rows = [[mine[q] - theirs[q] for q in sorted(mine)] for mine, theirs in pairs if theirs is not None]
    if not rows:
        return None
    difference = np.array(rows)  # [seeds, queries]
    draw, means = np.random.default_rng(0), []
    for _ in range(2000):
        seeds = draw.integers(0, len(difference), len(difference))
        queries = draw.integers(0, difference.shape[1], difference.shape[1])
        means.append(difference[np.ix_(seeds, queries)].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(row.mean()) for row in difference], float(low), float(high)


def report(found: list[dict[str, Any]], against: str) -> str:
    """Markdown: a table of each starting point and data set, arms by their dev hybrid, with differences to one arm."""
    lines: list[str] = []
    for start, data in dict.fromkeys((one["start"], one["data"]) for one in found):
        here = [one for one in found if (one["start"], one["data"]) == (start, data)]
        arms = {arm: [one for one in here if one["arm"] == arm] for arm in dict.fromkeys(one["arm"] for one in here)}
        base = arms.get(against, [])
        lines += ["", f"### {start}, {data}", ""]
        lines += [
            f"| arm | seeds | dev hybrid w* | pooled | late | hybrid | hybrid w* | w* | pooled - `{against}` "
            f"| late - `{against}` | hybrid w* - `{against}` |",
            "|" + "---|" * 11,
        ]
        mean = {
            arm: {v: float(np.mean([np.mean(list(o[v].values())) for o in some])) for v in columns()}
            for arm, some in arms.items()
        }
        for arm in sorted(arms, key=lambda arm: -mean[arm]["dev hybrid w*"]):
            cells = [f"{mean[arm][v]:.3f}" for v in columns()]
            weights = "/".join(f"{one['late_weight']:g}" for one in arms[arm])
            differences = [
                "" if arm == against else _difference(arms[arm], base, f"test {v}")
                for v in ("pooled", "late", "hybrid w*")
            ]
            lines.append("| " + " | ".join([f"`{arm}`", str(len(arms[arm])), *cells, weights, *differences]) + " |")
    return "\n".join(lines)


def columns() -> list[str]:
    return ["dev hybrid w*", *(f"test {view}" for view in VIEWS)]


def _difference(a: list[dict[str, Any]], b: list[dict[str, Any]], view: str) -> str:
    found = compare(a, b, view)
    if found is None:
        return "other data" if {one["seed"] for one in a} & {one["seed"] for one in b} else ""
    by_seed, low, high = found
    return f"{100 * float(np.mean(by_seed)):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results are kept")
    parser.add_argument("--start", default="minilm", help="a file start-NAME.yaml of tests/benchmarks/arms")
    parser.add_argument("--data", default="docstrings", help="a file data-NAME.yaml of tests/benchmarks/arms")
    parser.add_argument("--arms", nargs="*", default=["base", "pooled", "joint"], help="files of tests/benchmarks/arms")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--set", nargs="*", default=[], help="overrides of every arm")
    parser.add_argument("--against", default="pooled", help="the arm that the others are compared with")
    parser.add_argument("--report", action="store_true", help="print the tables of what is there, and run nothing")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in [] if args.report else args.seeds:
        for arm in args.arms:
            seed = 0 if arm == "base" else seed
            file = args.folder / f"{args.start}-{args.data}-{arm}-{seed}.json"
            if not file.is_file():
                found = run(args.start, args.data, arm, seed, args.set, args.folder)
                file.write_text(json.dumps(found), encoding="utf8")
                shutil.rmtree(args.folder / "runs" / file.stem, ignore_errors=True)
                print(report(results(args.folder), args.against), flush=True)
    print(report(results(args.folder), args.against))


if __name__ == "__main__":
    main()
