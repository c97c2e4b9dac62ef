"""Kill each command at random moments, run it again until it ends, and compare what it left with an uninterrupted run.

    python tests/hostile/kill_moments.py [--commands ingest export ...] [--moments 20] [--json FILE]

A command runs as a fork of a process that has done its imports (tests/helpers/killed.py): a process of its own, that
gets a real SIGKILL. The moments are drawn by seed, evenly over the time that the command needs when nothing stops it.
The command is then repeated word for word; a training that has a complete checkpoint gets
``training.resume_from_checkpoint=true``, as launch/slurm.sh adds it. Everything in the output is compared, byte for
byte or value by value, but for clocks (CLOCKS) and the log on the terminal.

The file is updated after each moment, and a later call makes those that are missing.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pdfs
import published
import pyarrow.parquet
import tiny
import tiny_data
import yaml
from killed import Fork
from resumed import differences, left, log_of, whole_recipe

PATIENCE = 600.0  # seconds for a run, on a machine that others use, too
CLOCKS = ("seconds", "rate", "per_second", "date", "created", "started", "speed", "memory", "eta", "runtime")
STEPS = 8
COMMANDS = ("export", "ingest", "mine", "evaluate", "probe", "train")


@dataclass
class Case:
    """A command whose output can be compared.

    words: its words for an output folder; result: what it left there, in a form that two runs share
    prepare: fills the output folder; began_anew: whether a killed run left nothing to go on from
    start: runs in the process of the command, before it
    through: whether a killed run had done all of its work, so that the same command would refuse to overwrite it
    """

    words: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, Any]]
    prepare: Callable[[Path], object] = lambda output: None
    began_anew: Callable[[Path], bool] = lambda output: not output.exists()
    start: Callable[[], object] | None = None
    through: Callable[[Path], bool] = lambda output: False


def files(folder: Path, *without: str) -> dict[str, Any]:
    """Every file of a folder without its clocks: values of JSON, the lines of reports, bytes of anything else."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name in without:
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            found[name] = timeless(json.loads(content))
        elif path.suffix in (".html", ".txt"):
            text = re.sub(r"encoding: .*?(?=$|[;\n] ?scoring)", "", content.decode("utf-8"))
            text = re.sub(r"[\d,.]+ \w+/s\b", "", text)
            found[name] = re.split(r"(?<=[>\n])", timeless(text))
        elif path.suffix == ".parquet":
            found[name] = timeless(pyarrow.parquet.read_table(path).to_pydict())
        elif path.suffix == ".safetensors":
            size = 8 + int.from_bytes(content[:8], "little")
            found[name] = {"header": timeless(json.loads(content[8:size])), "tensors": content[size:]}
        else:
            found[name] = content
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(clock in k for clock in CLOCKS)}
    if isinstance(value, str):
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", value)
    return [timeless(one) for one in value] if isinstance(value, list) else value


def cases(folder: Path) -> dict[str, Case]:
    """Make models and data in a folder; return the commands by name, the cheapest first."""
    for name in ("bert", "adapter"):
        (folder / name).mkdir(parents=True)
    base = tiny.bert(folder / "bert")
    adapter = published.made(folder / "adapter" / "made", str(base))
    data = corpus(folder / "data")
    documents = folder / "documents"
    documents.mkdir()
    for number in range(4):
        pdfs.book(documents / f"{number}.pdf", 10, number)
    pdfs.scan(documents / "scan.pdf", 3)
    (documents / "notes.md").write_text("# Notes\n" + pdfs.words("notes", 1000))
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(whole_recipe(base, tiny_data.write_triples(folder / "triples.jsonl"), STEPS)))

    def train(output: Path) -> list[str]:
        again = ["training.resume_from_checkpoint=true"] if checkpoints(output) else []
        return ["train", str(recipe), f"output={output}", *again]

    reads = ("--model", str(base), "--batch-size", "8")
    return {
        "export": Case(
            lambda out: ["export", str(adapter), "--as", "merged", "--out", str(out)], files, through=Path.exists
        ),
        "ingest": Case(lambda out: ["ingest", str(documents), "--out", str(out), "--jobs", "1"], ingested),
        "mine": Case(
            lambda out: ["mine", str(out), *reads, "--no-max-relative"],
            files,
            prepare=lambda out: shutil.copytree(data, out),
            began_anew=lambda out: not (out / "mining" / "unfinished.safetensors").exists(),
            start=save_often,
        ),
        "evaluate": Case(
            lambda out: ["evaluate", str(data), *reads, "--output", str(out), "--store", str(out / "store")], evaluated
        ),
        "probe": Case(lambda out: ["probe", str(data), *reads, "--output", str(out)], files),
        "train": Case(train, trained, began_anew=lambda out: not checkpoints(out)),
    }


def corpus(folder: Path, documents: int = 2000, queries: int = 48) -> Path:
    """A BEIR folder of several shards of documents, with a train and a test split."""
    texts = [f"{tiny_data.passage(n % tiny_data.PAGES)} {pdfs.words(n, n % 9)} {n}" for n in range(documents)]
    tiny_data.write_lines(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)])
    asked = [{"_id": f"q{n}", "text": f"what stands beside {pdfs.words(n, 3)} {n}"} for n in range(queries)]
    tiny_data.write_lines(folder / "queries.jsonl", asked)
    (folder / "qrels").mkdir()
    for at, split in enumerate(("train", "test")):
        lines = [f"q{n}\td{n * 7}\t1" for n in range(queries) if n % 2 == at]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def save_often() -> None:
    """Mining saves its state once a minute, which these runs do not last; here after each portion of documents."""
    from smart_train.mining import folder

    folder.mine_folder = functools.partial(folder.mine_folder, save_every=0.0)  # type: ignore[assignment]


def evaluated(output: Path) -> dict[str, Any]:
    """Without how many vectors the last of the processes found in the store, and how fast it encoded the others."""
    found = files(output)
    for row in found["evaluation.json"]["rows"].values():
        row.pop("stored", None)
    return found


def ingested(output: Path) -> dict[str, Any]:
    found = files(output)
    found["report.json"].pop("run")  # how much of it the last of the processes did
    return found


def checkpoints(output: Path) -> list[Path]:
    return [path for path in (output / "checkpoints").glob("checkpoint-*") if path.suffix == ""]


def trained(output: Path) -> dict[str, Any]:
    log = [line for line in log_of(output) if "train_loss" not in line]
    names = ("metrics.json", "evaluation.json")
    report = {name: timeless(json.loads((output / name).read_bytes())) for name in names}
    adapter = {path.name: path.read_bytes() for path in sorted((output / "adapter").glob("*.safetensors"))}
    return {"log": log, **report, "adapter": adapter, "last": left(output / "checkpoints" / f"checkpoint-{STEPS}")}


def run(case: Case, output: Path, until: float | None = None) -> bool:
    """Run a command; kill it after ``until`` seconds. Return whether it was through before."""
    printed = output.with_name("printed.txt")
    process = Fork(case.words(output), printed, case.start)
    status = process.wait(PATIENCE if until is None else until)
    if status is None:
        process.kill()
        if until is not None:
            return False
        raise RuntimeError(f"{case.words(output)}: no end after {PATIENCE:.0f} s\n{printed.read_text()[-2000:]}")
    if status != 0:
        raise RuntimeError(f"{case.words(output)}: status {status}\n{printed.read_text(errors='replace')[-3000:]}")
    return True


def whole(case: Case, folder: Path) -> tuple[dict[str, Any], float]:
    """Two runs that nothing stops: they must be equal, or a comparison says nothing. Return result and seconds."""
    results, seconds = [], 0.0
    for name in ("whole", "again"):
        output = folder / name / "out"  # some outputs hold the name of their folder
        output.parent.mkdir()
        case.prepare(output)
        begin = time.monotonic()
        run(case, output)
        seconds = time.monotonic() - begin  # of the second one: the server's imports are done
        results.append(case.result(output))
    if found := differences(*results):
        raise RuntimeError(f"two uninterrupted runs differ: {found[:10]}")
    return results[0], seconds


def trial(case: Case, folder: Path, seed: int, expected: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Kill at a moment of this seed, go on to the end, compare."""
    chance = random.Random(f"moment {seed}")
    output = folder / f"moment {seed}" / "out"
    output.parent.mkdir()
    while True:
        case.prepare(output)
        moment = chance.uniform(0, seconds)
        if not run(case, output, moment):
            break
        shutil.rmtree(output)  # through before the kill: the machine is faster now
    anew = case.began_anew(output)
    if not case.through(output):
        run(case, output)
    found = differences(case.result(output), expected)
    shutil.rmtree(output.parent)
    return {"seed": seed, "moment": round(moment, 3), "same": not found, "anew": anew, "differences": found[:10]}


def measure(names: list[str], moments: int, file: Path | None, folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.exists() else {}
    for name, case in cases(folder).items():
        if name not in names or len(record.get(name, {}).get("trials", [])) >= moments:
            continue
        place = folder / "runs" / name
        place.mkdir(parents=True)
        expected, seconds = whole(case, place)
        kept = record.setdefault(name, {"seconds": round(seconds, 2), "trials": []})["trials"]
        for seed in range(len(kept), moments):
            kept.append(trial(case, place, seed, expected, seconds))
            print(f"{name} {seed + 1}/{moments} of {seconds:.1f} s: {kept[-1]}", flush=True)
            if file is not None:
                file.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS, help="default: all")
    parser.add_argument("--moments", type=int, default=20, help="of each command (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where to record, and what to go on with (default: only printed)")
    parser.add_argument("--folder", type=Path, help="place for models, data and outputs (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-moments-") as temporary:
        found = measure(options.commands, options.moments, options.json, options.folder or Path(temporary))
    for name, row in found.items():
        same, anew = (sum(one[key] for one in row["trials"]) for key in ("same", "anew"))
        print(f"{name}: {same} of {len(row['trials'])} the same, {anew} of them began anew")
    sys.exit(not all(one["same"] for row in found.values() for one in row["trials"]))
