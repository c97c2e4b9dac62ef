"""Throw hostile inputs at every public door, and count what becomes of them.

    python tests/hostile/throw_inputs.py [--kinds KIND ...] [--share 0.1] [--json FILE]
    python tests/hostile/throw_inputs.py --kinds images --seed 7 --keep FOLDER     # one input, to look at

inputs.py makes the inputs: a kind and a seed are an input. Each runs in a process of its own (attempts.py).

refused      ended with a sentence and status 2, or 1 where the fault lies in data that were being read
told         the command did its work and reported the fault (data check, ingest: status 3)
right        accepted, and the result is what an independent reader says, or what it is without the fault
wrong        accepted, and it is not
traceback    any other exception, or death by a signal
hang         no end within 90 seconds
leak         bytes of a file outside of the data's folder in anything printed or written
half         refused, and yet a file is there that shows a complete result
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import published
import tiny
import tiny_data
import yaml
from attempts import Attempt, Attempts
from fakehub import FakeHub
from inputs import KINDS, Input, Place
from PIL import Image

SECRET = "the canary sings at 4711 Harbour Lane"
COLOUR = (254, 1, 253)
OUTCOMES = ("refused", "told", "right", "wrong", "traceback", "hang", "leak", "half")
BAD = ("wrong", "traceback", "hang", "leak", "half")


class Doors:
    """The two processes that fork: without a Hub, and (made when it is first asked for) with one on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offline = Attempts()
        self.hub = FakeHub()
        self._online: Attempts | None = None

    @property
    def online(self) -> Attempts:
        if self._online is None:
            quick = {"HF_HUB_DOWNLOAD_TIMEOUT": "3", "HF_HUB_ETAG_TIMEOUT": "3"}
            self._online = Attempts(self.hub.environment(self.folder / "hub", **quick))
        return self._online

    def __enter__(self) -> Doors:
        self.hub.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.hub.__exit__()
        for one in (self.offline, self._online):
            if one is not None:
                one.__exit__()


def make_place(folder: Path, attempts: Attempts, runs: bool = True) -> Place:
    """Make everything valid that inputs are copied from. runs: False = without a training and an evaluation."""
    for name in ("bert", "canary", "case"):
        (folder / name).mkdir(parents=True)
    base = tiny.bert(folder / "bert")
    triples = tiny_data.write_triples(folder / "triples" / "train.jsonl")
    canary, image = folder / "canary" / "secret.txt", folder / "canary" / "secret.png"
    canary.write_text(f"{SECRET}\n" * 3)
    Image.new("RGB", (64, 64), COLOUR).save(image)
    recipe: dict[str, Any] = {
        "model": {"base": str(base)},
        "adapter": {"r": 4},
        "data": {"path": str(triples), "negatives": 1, "dev": 4},
        "objective": {"batch": 4},
        "training": {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "use_cpu": True, "disable_tqdm": True},
        "evaluation": {"before": False, "after": False, "bootstrap": 1},
    }
    beir = tiny_data.write_beir(folder / "beir")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    place = Place(
        folder / "case" / "a" / "b",
        base,
        published.made(folder / "adapter", str(base)),
        beir,
        triples,
        recipe,
        folder / "run",
        {},
        [],
        canary,
        image,
    )
    evaluate = ["evaluate", str(beir), "--model", str(base), "--output", str(folder / "out"), "--bootstrap", "10"]
    for words in () if not runs else (["train", str(folder / "recipe.yaml"), f"output={place.run}"], evaluate):
        done = attempts.run({"words": words}, folder / "printed")
        assert done.status == 0, done.err
    if not runs:
        return place
    plain = {"function": "plain", "arguments": {"folder": str(place.adapter)}}
    place.vectors = attempts.run(plain, folder / "printed").answer
    place.metrics = json.loads((folder / "out" / "metrics.json").read_text())
    return place


def judge(one: Input, attempt: Attempt, place: Place) -> tuple[str, str]:
    """Return the outcome, and what to say of it."""
    if attempt.status is None:
        return "hang", attempt.last_line()
    if attempt.traceback:
        return "traceback", attempt.last_line()
    if found := leaked(place.folder.parents[1]):
        return "leak", f"in {found}"
    if attempt.refused:
        there = [str(path) for path in one.whole if path.is_file() or path.is_dir() and any(path.iterdir())]
        return ("half", f"{there} after: {attempt.last_line()}") if there else ("refused", attempt.last_line())
    if attempt.status != 0 and attempt.status not in one.told:
        return "wrong", f"status {attempt.status} and: {attempt.last_line()}"
    try:
        wrong = one.right(attempt)
    except Exception as error:  # nothing to judge: no result, or one that cannot be read
        wrong = f"status {attempt.status}, and the result cannot be read: {type(error).__name__}: {error}"
    if wrong is not None:
        return "wrong", wrong
    return ("told" if attempt.status else "right"), attempt.last_line()


def leaked(folder: Path) -> str | None:
    """Name a file below the folder that shows a canary: its text, plain or in base64, or its colour in an image."""
    text = SECRET.encode()
    marks = [text, *(base64.b64encode(b"x" * n + text)[4 * (n > 0) : -4].rstrip(b"=") for n in range(3))]
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        raw = path.read_bytes()
        if any(mark in raw for mark in marks):
            return str(path)
        pictures = re.findall(rb"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", raw) if path.suffix == ".html" else []
        for picture in [*map(base64.b64decode, pictures), *([raw] if path.suffix in (".png", ".jpg", ".jpeg") else [])]:
            try:
                with Image.open(io.BytesIO(picture)) as image:
                    shown = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
            except Exception:  # spoilt, as it should be
                continue
            if all(abs(a - b) < 40 for a, b in zip(shown, COLOUR, strict=True)):
                return str(path)
    return None


def throw(kind: str, seed: int, place: Place, doors: Doors) -> dict[str, Any]:
    """Make one input, run it, judge it."""
    top = place.folder.parents[1]
    shutil.rmtree(top, ignore_errors=True)
    place.folder.mkdir(parents=True)
    one = KINDS[kind][0](place, random.Random(f"{kind} {seed}"))
    home = {"HOME": str(place.folder)}
    call = {**one.call, "environment": {**home, **one.call.get("environment", {})}}
    if one.hub is not None:
        one.hub(doors.hub)
    there = set(doors.hub.repos)
    attempts = doors.offline if one.hub is None else doors.online
    attempt = attempts.run(call, place.folder / "printed")
    sent = place.folder / "sent"  # what the Hub was sent is searched for leaks, too
    for number, repo in enumerate(repo for name, repo in doors.hub.repos.items() if name not in there):
        for name, content in repo.commits[-1][1].items() if repo.commits else ():
            file = sent / str(number) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    outcome, told = judge(one, attempt, place)
    return {"kind": kind, "seed": seed, "input": one.name, "outcome": outcome, "status": attempt.status, "told": told}


def count(found: list[dict[str, Any]]) -> dict[str, int]:
    outcomes = Counter(one["outcome"] for one in found)
    return {"tried": len(found)} | {name: outcomes[name] for name in OUTCOMES}


def seeds(kind: str, share: float) -> range:
    return range(max(1, round(KINDS[kind][1] * share)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS], help="default: all")
    parser.add_argument("--share", type=float, default=1.0, help="of each kind's inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="only this input of each kind")
    parser.add_argument("--json", type=Path, help="where to write the counts; other kinds in it stay")
    parser.add_argument("--keep", type=Path, help="new folder to work in, which is kept (default: a temporary one)")
    options = parser.parse_args()
    counts: dict[str, dict[str, int]] = {}
    if options.json is not None and options.json.exists():
        counts = json.loads(options.json.read_text())
    bad = 0
    with tempfile.TemporaryDirectory(prefix="hostile-") as temporary, Doors(Path(temporary)) as doors:
        place = make_place(options.keep or Path(temporary), doors.offline)
        for kind in options.kinds:
            found = []
            for seed in seeds(kind, options.share) if options.seed is None else [options.seed]:
                found.append(throw(kind, seed, place, doors))
                if options.seed is not None or found[-1]["outcome"] in BAD:
                    print(json.dumps(found[-1]), flush=True)
            bad += sum(one["outcome"] in BAD for one in found)
            counts[kind] = count(found)
            print(kind, counts[kind], flush=True)
            if options.json is not None:
                known = {kind: counts[kind] for kind in KINDS if kind in counts}
                options.json.write_text(json.dumps(known, indent=1) + "\n")
    sys.exit(bool(bad))
