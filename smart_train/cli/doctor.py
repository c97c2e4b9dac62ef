"""``smart-train doctor``: report what this machine has, what a recipe needs and what fits."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smart_train.cli.options import count
from smart_train.core.errors import UsageError

if TYPE_CHECKING:
    from smart_train.planning.doctor import Diagnosis, Row
    from smart_train.planning.launch_files import Launch
    from smart_train.planning.machine import Machine

GIB = 1 << 30
CANNOT_RUN = 2  # exit status
WHEN_NONE = (1, 8)  # numbers of GPUs that are looked at on a machine without any
ABOUT = """GiB of one GPU (of one process on a CPU); rows are the longest that the recipe allows.
Exact: weights, gradients, optimiser, embeddings, gathers. whole: upper bound of gathered weights and buckets.
Estimates: logits; activations, 0.85 to 1.25 of what torch saved for BERT, ModernBERT, Qwen3 and Qwen3-VL.
peak: the most at once, with 1 GiB for CUDA. MiB a step: received by a rank, embeddings and weights."""


def add(commands: argparse._SubParsersAction) -> None:
    about = "report what this machine has, what a recipe needs, and what fits"
    doctor = commands.add_parser("doctor", help=about, description=about)
    doctor.add_argument("file", nargs="?", help="a recipe (default: report the machine only)")
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="as for train; before any flag")
    doctor.add_argument("--gpus", type=count, help="GPUs of one machine (default: those here, else no table)")
    doctor.add_argument(
        "--memory", type=_gib, metavar="GIB", help="memory of one GPU, in GiB (default: that of the GPUs here)"
    )
    doctor.add_argument(
        "--launch",
        action="append",
        metavar="FILE",
        help="launch file to try; may be repeated (default: all shipped ones)",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, with sizes in bytes")
    doctor.set_defaults(run=run)


def _gib(text: str) -> int:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GiB above 0")
    return int(size * GIB)


def run(options: argparse.Namespace) -> int:
    from smart_train.planning.machine import inspect_machine, known_problems

    recipe = _recipe(options)
    machine = inspect_machine(Path(recipe.output or f"runs/{recipe.name}") if recipe is not None else Path("runs"))
    problems = list(known_problems(machine))
    if not options.json:
        print("\n".join(_machine_lines(machine, problems)), flush=True)
    if recipe is None:
        if options.json:
            print(json.dumps({"machine": machine.plain(), "traps": problems}, indent=2))
        return 0
    from smart_train.planning.doctor import diagnose

    launches, broken = _launches(options.launch, recipe)
    gpus = [options.gpus] if options.gpus else [len(machine.gpus)] if machine.gpus else list(WHEN_NONE)
    if recipe.training.get("use_cpu"):
        gpus = gpus[:1]
    memory = options.memory or machine.memory
    report = diagnose(recipe, launches, gpus, memory, machine.ram)
    if options.json:
        values = {"machine": machine.plain(), "traps": [*problems, *broken], "recipe": report.plain()}
        print(json.dumps(values, indent=2, default=str))
    else:
        asked = bool(machine.gpus or options.gpus or options.memory or options.launch or recipe.training.get("use_cpu"))
        print("\n".join(_recipe_lines(report, options.file, memory, broken, asked)))
    return CANNOT_RUN if report.problems else 0


def _recipe(options: argparse.Namespace) -> Any:
    if options.file is None:
        return None
    from smart_train.config.recipe import read

    return read(options.file, options.overrides)


def _launches(given: list[str] | None, recipe: Any) -> tuple[list[Launch], list[str]]:
    """Return the launch files that can be read, the recipe's own DeepSpeed settings, and what is wrong with others."""
    from smart_train.core.errors import LaunchError
    from smart_train.planning.launch_files import read_deepspeed, read_launch, shipped

    paths = [Path(path) for path in given] if given else shipped()
    named = recipe.training.get("deepspeed")
    readers = [(read_launch, path) for path in paths]
    if isinstance(named, str) and not named.startswith("{"):
        readers.append((read_deepspeed, Path(named)))
    read, broken = [], []
    for reader, path in readers:
        try:
            read.append(reader(path))
        except LaunchError as error:
            broken.append(str(error))
    if not read:
        raise UsageError("\n".join(["no launch file can be read; name one: --launch launch/ddp.yaml", *broken]))
    return read, broken


# The report -----------------------------------------------------------------------------------------------------------


def _machine_lines(machine: Machine, problems: list[str]) -> Iterator[str]:
    yield "machine"
    for number, gpu in enumerate(machine.gpus):
        capability = ".".join(map(str, gpu.capability)) if gpu.capability else "-"
        bf16 = "bfloat16" if gpu.bf16 else "no bfloat16"
        yield _line(f"GPU {number}", f"{gpu.name}, {_size(gpu.memory)} ({_size(gpu.free)} free), {capability}, {bf16}")
    if not machine.gpus:
        yield _line("GPUs", "none")
    threads = machine.threads or "not set (accelerate launch: 1)"
    yield _line("CPU", f"{machine.cores} cores; OMP_NUM_THREADS {threads}")
    yield _line("memory", f"{_size(machine.ram)} ({_size(machine.free_ram)} free), /dev/shm {_size(machine.shared)}")
    yield _line("disk", f"{_size(machine.disk)} free")
    yield _line("torch", f"{machine.versions['torch']}, CUDA {machine.cuda or 'none'}, {' '.join(machine.backends)}")
    names = ("transformers", "sentence-transformers", "accelerate", "deepspeed", "peft", "datasets")
    yield _line("versions", ", ".join(f"{name} {machine.versions[name]}" for name in names))
    kernels = [f"{name} {'yes' if there else 'no'}" for name, there in machine.kernels.items()]
    yield _line("kernels", ", ".join([*kernels, f"compiler {machine.compiler or 'none'}"]))
    yield _line("trackers", ", ".join(f"{name} {state}" for name, state in machine.trackers.items()))
    for problem in problems:
        yield _line("look out", problem)


def _recipe_lines(report: Diagnosis, file: str, memory: int | None, broken: list[str], tables: bool) -> Iterator[str]:
    subject, counts = report.subject, report.subject.blueprint.counts()
    yield f"\nrecipe {file}"
    parts = ", ".join(f"{name} {counts[name]:,}" for name in ("lora", "head", "backbone") if counts[name])
    yield _line("parameters", f"{counts['all']:,}, of which {counts['trainable']:,} are trained ({parts})")
    if not subject.blueprint.stored:
        yield _line("", "the base does not say its dtype: float32 is taken for it; model.dtype says another")
    for kind in subject.blueprint.unknown:
        yield _line("", f"not counted: weights of the module {kind}")
    lengths = subject.lengths
    page = f" (an image: {lengths.patches:,} patches)" if lengths.patches else ""
    yield _line("rows", f"queries to {lengths.query} tokens, documents to {lengths.document:,}{page}")
    yield _line("batch", _batch(report))
    for problem in [*report.problems, *broken]:
        yield _line("stops here", problem)
    if not tables:
        what = "no GPU here; to see what would fit on some, name their number and memory: --gpus 8 --memory 80"
        yield _line("advice", what)
    for gpus in dict.fromkeys(row.need.gpus for row in report.rows if tables):
        yield from _table([row for row in report.rows if row.need.gpus == gpus], gpus, memory, subject.on_cpu)
    if tables:
        yield f"\n{ABOUT}\n"
    for line in report.advice:
        yield _line("advice", line)


def _batch(report: Diagnosis) -> str:
    from smart_train.training.batch_size import chunk_rows

    subject = report.subject
    objective, limit = subject.recipe.objective, chunk_rows(subject.recipe.objective)
    if objective.batch is None:
        return f"{subject.pairs(1)} pairs a GPU, in one pass"
    how = "gradients cached" if subject.cached else "in one pass (the backbone is frozen)"
    rows = f"{limit} rows" if limit else f"{objective.chunk_tokens} tokens"
    return f"{objective.batch} pairs a loss over all GPUs, {how}, {rows} a forward"


def _table(rows: list[Row], gpus: int, memory: int | None, on_cpu: bool) -> Iterator[str]:
    what = "processes on CPU cores" if on_cpu else f"{gpus} GPU{'s' if gpus > 1 else ''}"
    of = f" of {_size(memory)}" if memory and not on_cpu else ""
    width = max(14, *(len(row.need.launch) + 2 for row in rows))
    names = ("ranks", "weights", "whole", "gradients", "optimiser", "activations", "embeddings", "logits", "peak")
    yield f"\n{what}{of}"
    yield "  " + "launch".ljust(width) + "".join(name.rjust(12) for name in names) + "  MiB a step"
    for row in rows:
        need, states = row.need, row.need.states
        sizes = (states.weights, states.gathered, states.gradients, states.optimiser)
        parts = [*sizes, need.activations, need.embeddings, need.logits, need.peak]
        cells = "".join(f"{size / GIB:12.2f}" for size in parts)
        traffic = f"{(need.gathers + need.traffic) / 2**20:12,.0f}"
        ram = f"; {_size(need.ram)} of RAM" if need.ram else ""
        verdict = "" if row.verdict == "unknown" else f"  {row.verdict}"
        yield "  " + need.launch.ljust(width) + f"{need.ranks:12}" + cells + traffic + verdict + ram
        yield from (f"      {note}" for note in need.notes)


def _line(name: str, text: str) -> str:
    return f"  {name:<12}{text}"


def _size(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"
