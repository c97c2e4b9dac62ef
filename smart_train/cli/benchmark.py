"""``smart-train benchmark``: run public benchmarks, through MTEB or from the files of MMEB-V2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from smart_train.cli.options import (
    SETTING_NAMES,
    add_model,
    add_reading,
    check_output,
    check_reading,
    count,
    make_encoder,
    own_gpu,
)
from smart_train.core.environment import rank, world
from smart_train.core.errors import UsageError, checks
from smart_train.core.extras import require
from smart_train.core.folder_lock import own
from smart_train.core.hub import display_name

MODES = ("pooled", "late", "hybrid")


def add(commands: argparse._SubParsersAction) -> None:
    about = "evaluate pooled, late and hybrid on public benchmarks: tasks of MTEB, or MMEB-V2"
    benchmark = commands.add_parser("benchmark", help=about, description=about)
    add_model(benchmark, "folder of a trained adapter; its settings are used")
    benchmark.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help="tasks or benchmarks of MTEB: NanoBEIR, BEIR, 'ViDoRe(v3)', SciFact; with --mmeb: image, video, visdoc "
        "or its tasks (default: all 78)",
    )
    benchmark.add_argument("--output", required=True, help="folder for results; tasks that it has are not run again")
    benchmark.add_argument(
        "--modes", nargs="+", choices=MODES, default=list(MODES), help="scores to measure (default: pooled late hybrid)"
    )
    benchmark.add_argument("--workers", type=count, help="processes that decode images, for MTEB (default: none)")
    benchmark.add_argument(
        "--name", help="organisation/model under which MTEB's results are filed (default: the base or adapter)"
    )
    benchmark.add_argument(
        "--task-prompts",
        metavar="TEMPLATE",
        help="MTEB's prompt of each task before queries, in a template such as "
        '"Instruct: {prompt}\\nQuery: " (default: the model\'s own prompts)',
    )
    benchmark.add_argument(
        "--mmeb", metavar="FOLDER", help="MMEB-V2 as its download script leaves it (docs/reproduce.md)"
    )
    benchmark.add_argument(
        "--frames", type=count, default=8, help="most frames of a video, for MMEB-V2 (default: %(default)s)"
    )
    benchmark.add_argument(
        "--as-video", action="store_true", help="encode frames as one video, not as images; needs torchvision"
    )
    benchmark.add_argument(
        "--own-prompts", action="store_true", help="use the model's own prompts, not MMEB-V2's instructions"
    )
    benchmark.add_argument(
        "--processes", type=count, default=1, help="processes that share MMEB-V2's tasks (default: %(default)s)"
    )
    add_reading(benchmark)
    benchmark.set_defaults(run=run, setting_names=SETTING_NAMES)


def run(options: argparse.Namespace) -> int:
    _check(options)
    base = check_reading(options)
    if not options.mmeb:
        with own(options.output):
            return _mteb(options)
    if not base.vision:
        raise UsageError(f"--model: MMEB-V2 shows images, and {options.model} has no image side")
    if options.processes > 1 and world() == 1:
        from smart_train.distributed.local_launch import launch_local, remove_option

        status = launch_local(options.processes, remove_option(options.arguments, "--processes"))
        if status:
            return status
    with own(options.output if rank() == 0 else None):
        return _mmeb(options)  # after several processes: finds their results, and adds them up


def _check(options: argparse.Namespace) -> None:
    if options.mmeb is None:
        require("mteb", "a benchmark of MTEB")
    check_output(Path(options.output))
    options.modes = [mode for mode in MODES if mode in options.modes]
    if options.mmeb is None and not options.tasks:
        raise UsageError("--tasks: name MTEB's tasks or benchmarks (NanoBEIR, ...), or give --mmeb FOLDER for MMEB-V2")
    if options.mmeb is None and (options.as_video or options.own_prompts):
        raise UsageError("--as-video and --own-prompts belong to MMEB-V2: give --mmeb FOLDER, or leave them out")
    if options.mmeb is None and options.processes > 1:
        raise UsageError("--processes shares MMEB-V2's tasks; MTEB's result files are written by one process")
    if options.mmeb is not None and not Path(options.mmeb).is_dir():
        raise UsageError(f"--mmeb: {options.mmeb} is no folder; see docs/reproduce.md for how to download it")
    if options.task_prompts is not None and "{prompt}" not in options.task_prompts:
        raise UsageError(f"--task-prompts: {options.task_prompts!r} has no {{prompt}} in it; add it")


def _mteb(options: argparse.Namespace) -> int:
    from smart_train.benchmarks.mteb_runs import find_tasks, run_tasks

    with checks():
        tasks = find_tasks(options.tasks)
    name = options.name or (_result_name(options.adapter) if options.adapter else None)
    template = options.task_prompts.replace("\\n", "\n") if options.task_prompts else None
    result = run_tasks(
        make_encoder(options),
        tasks,
        options.output,
        modes=options.modes,
        name=name,
        task_prompts=template,
        batch_size=options.batch_size,
        workers=options.workers,
        progress=sys.stderr.isatty(),
    )
    if result.tasks:
        print(result.table())
    return _report(result.failed, len(tasks), Path(options.output) / "benchmark.json")


def _result_name(adapter: str) -> str:
    """Return organisation/model under which an adapter's results are filed: its Hub id, or local/RUN."""
    return f"local/{display_name(adapter).partition('/')[0]}" if Path(adapter).exists() else adapter


def _mmeb(options: argparse.Namespace) -> int:
    from smart_train.benchmarks.mmeb_data import MmebFolder
    from smart_train.benchmarks.mmeb_runs import mmeb_table, run_mmeb
    from smart_train.benchmarks.mmeb_tasks import select_tasks

    with checks():
        tasks = select_tasks(options.tasks)
    if world() > 1:
        own_gpu(options)
        tasks = tasks[rank() :: world()]
    result = run_mmeb(
        make_encoder(options),
        tasks,
        MmebFolder(Path(options.mmeb), options.frames, options.as_video),
        options.output,
        modes=options.modes,
        instructions=not options.own_prompts,
        batch_size=options.batch_size,
        progress=sys.stderr.isatty() and rank() == 0,
    )
    if world() > 1:
        return 0  # the process that started this one reports
    if result["tasks"]:
        print(mmeb_table(result))
    return _report(result["failed"], len(tasks), Path(options.output) / "mmeb.json")


def _report(failed: Mapping[str, str], of: int, path: Path) -> int:
    """Print each failed task with its reason, and return the exit status."""
    for name, reason in failed.items():
        print(f"{name}: no result ({reason.splitlines()[0][:300]})", file=sys.stderr)
    print(f"{of - len(failed)} of {of} tasks; results: {path}")
    return 1 if failed else 0
