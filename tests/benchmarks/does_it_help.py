"""Does training the late term pay over training the pooled loss alone and reading the late view for free?

    python tests/benchmarks/does_it_help.py --seeds 0 1 2 --json does_it_help.json [--arms pooled joint ...]

Seed by seed every arm sees the same pairs in the same order for the same number of steps (the b128 arms: twice as many
a step).  The hybrid's late weight is chosen on the dev split ("w*"; the plain hybrid has weights 1 and 1), figures are
of the test split: packages that neither training nor choosing has seen.  Differences are paired by seed and query; the
95 % intervals resample both.
Results are added to the JSON after each run; a run that is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from smart_train.config.recipe import read
from smart_train.evaluation.calibration import calibrate_encoded
from smart_train.evaluation.encode import encode
from smart_train.evaluation.retrieval import evaluate_encoded
from smart_train.training.run import Splits, load, make_trainer, untrained_encoder

POOLED = ["objective.late.weight=0"]
LATE = ["objective.pooled.weight=0"]
ARMS: dict[str, list[str]] = {
    "pooled": POOLED,
    "joint": [],
    "late": LATE,
    "hybrid": [*POOLED, *LATE, "objective.hybrid.weight=1"],
    "hybrid-tau02": [*POOLED, *LATE, "objective.hybrid.weight=1", "objective.hybrid.temperature=0.02"],
    "hybrid-tau10": [*POOLED, *LATE, "objective.hybrid.weight=1", "objective.hybrid.temperature=0.1"],
    "all-three": ["objective.hybrid.weight=1"],
    "joint-w025": ["objective.late.weight=0.25"],
    "joint-tau02": ["objective.late.temperature=0.02"],
    "joint-tau10": ["objective.late.temperature=0.1"],
    "pooled-tau02": [*POOLED, "objective.pooled.temperature=0.02"],
    "both-tau02": ["objective.late.temperature=0.02", "objective.pooled.temperature=0.02"],
    "late-tau02": [*LATE, "objective.late.temperature=0.02"],
    "joint-w4": ["objective.late.weight=4"],
    "joint-head": ["late.head=linear", "training.head_learning_rate=1e-3"],
    "joint-head128": ["late.head=linear", "late.dim=128", "training.head_learning_rate=2e-3"],
    "joint-mix": ["late.layer=[4,5,-1]", "training.head_learning_rate=1e-2"],
    "joint-layer5": ["late.layer=5"],
    "pooled-d32": [*POOLED, "late.dim=32"],
    "joint-d32": ["late.dim=32"],
    "joint-head-d32": ["late.head=linear", "late.dim=32", "training.head_learning_rate=2e-3"],
    "joint-upper": ["adapter.layers=[4,5,6]"],
    "pooled-upper": [*POOLED, "adapter.layers=[4,5,6]"],
    "joint-nopunct": ["late.drop=[punctuation]"],
    "pooled-nopunct": [*POOLED, "late.drop=[punctuation]"],
    "joint-lr2e-4": ["training.learning_rate=2e-4"],
    "pooled-lr2e-4": [*POOLED, "training.learning_rate=2e-4"],
    "joint-lr1e-3": ["training.learning_rate=1e-3"],
    "pooled-lr1e-3": [*POOLED, "training.learning_rate=1e-3"],
    "joint-b128": ["training.per_device_train_batch_size=128"],
    "pooled-b128": [*POOLED, "training.per_device_train_batch_size=128"],
}


def figures(encoder: Any, sides: Splits) -> dict[str, Any]:
    """Dev and test nDCG@10 by mode, the weight that dev chose, and every test query's value."""
    encoder.eval()
    dev, test = (encode(encoder, side, batch_size=32) for side in (sides.dev, sides.test))
    unit = encoder.late.hybrid
    chosen, grid = calibrate_encoded(dev, sides.dev.qrels, unit)
    found: dict[str, Any] = {"late_weight": chosen.late, "grid": grid}
    for name, hybrid in (("", unit), ("chosen ", chosen)):
        for split, encoded, side in (("dev", dev, sides.dev), ("test", test, sides.test)):
            result = evaluate_encoded(encoded, side.qrels, hybrid, k=[10], bootstrap=1)
            for mode, values in result.per_query.items():
                if not name or mode == "hybrid":
                    found[f"{split} {name}{mode}"] = values["ndcg@10"]
    return found


def train(arm: str, seed: int, common: list[str], recipe_file: str, output: Path) -> dict[str, Any]:
    overrides = [*common, *ARMS[arm], f"training.seed={seed}", f"training.data_seed={seed}", f"output={output}"]
    recipe = read(recipe_file, overrides)
    sides = Splits(*load(recipe.data))
    trainer = make_trainer(recipe, sides, output)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    return {"arm": arm, "seed": seed, "seconds": seconds, "overrides": overrides, **figures(trainer.encoder, sides)}


def compare(a: list[dict[str, Any]], b: list[dict[str, Any]], name: str) -> tuple[list[float], float, float] | None:
    """Differences a - b of ``name``, one a seed, each paired by query, and the 95 % interval of their mean.

    The interval resamples seeds and queries, both, so that a lucky seed does not pass for an effect.  None where the
    two share no seed.
    """
    other = {one["seed"]: one[name] for one in b}
    rows = [[one[name][q] - other[one["seed"]][q] for q in sorted(one[name])] for one in a if one["seed"] in other]
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


VIEWS = ["dev pooled", "dev late", "dev hybrid", "dev chosen hybrid"]
VIEWS += [name.replace("dev", "test") for name in VIEWS]


def report(results: list[dict[str, Any]], against: str) -> str:
    lines = ["arm".ljust(20) + "seeds " + "".join(view.replace("chosen ", "w* ").rjust(16) for view in VIEWS)]
    arms = list(dict.fromkeys(one["arm"] for one in results))
    for arm in arms:
        of_arm = [one for one in results if one["arm"] == arm]
        cells = [np.mean([np.mean(list(one[view].values())) for one in of_arm]) for view in VIEWS]
        lines.append(arm.ljust(20) + f"{len(of_arm):5d} " + "".join(f"{cell:16.4f}" for cell in cells))
    base = [one for one in results if one["arm"] == against]
    for arm in arms if base else []:
        if arm not in (against, "base"):
            of_arm = [one for one in results if one["arm"] == arm]
            for view in ("test late", "test chosen hybrid"):
                found = compare(of_arm, base, view)
                if found is not None:
                    seeds = ", ".join(f"{100 * value:+.1f}" for value in found[0])
                    interval = f"[{100 * found[1]:+.1f}, {100 * found[2]:+.1f}]"
                    mean = 100 * float(np.mean(found[0]))
                    lines.append(f"{arm} - {against}, {view}: {mean:+.2f} points {interval}, by seed {seeds}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/quickstart.yaml")
    parser.add_argument("--arms", nargs="*", default=["pooled", "joint"], choices=["base", *ARMS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="overrides of every arm")
    parser.add_argument("--against", default="pooled")
    parser.add_argument("--json", type=Path, default=Path("does_it_help.json"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results = json.loads(args.json.read_text()) if args.json.is_file() else []
    done = {(one["arm"], one["seed"]) for one in results}
    common = ["evaluation.during=false", "training.eval_strategy=no", "training.save_strategy=no", *args.set]
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, seed) in done or (arm == "base" and any(one["arm"] == "base" for one in results)):
                continue
            if arm == "base":
                recipe = read(args.recipe, common)
                found = {"arm": arm, "seed": seed, **figures(untrained_encoder(recipe), Splits(*load(recipe.data)))}
            else:
                found = train(arm, seed, common, args.recipe, args.json.with_suffix("") / f"{arm}-{seed}")
            results.append(found)
            args.json.write_text(json.dumps(results))
            print(report(results, args.against), flush=True)
    print(report(results, args.against))


if __name__ == "__main__":
    main()
