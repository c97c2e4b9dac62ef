"""How long a step waits for its pages: the share of the time that is waiting, with 0, 1 and 2 data workers.

    python tests/benchmarks/loading.py [--pages 48] [--pixels 1048576] [--batch 4] [--workers 0 1 2] [--ratio 1 2]
                                       [--step SECONDS] [--steps 8] [--repeats 3] [--json FILE]

Pages are JPEG files as ingest stores them.  A batch is drawn by data/batch_sampler.py, decoded, resized and cut
into patches by the Collator with a Qwen3-VL processor, and brought by the loader that training uses.  The step
itself sleeps, since a GPU leaves the CPU free: as long as --step says, or the time that one process needs for a batch
times each --ratio.  Waiting is the time until the next batch is there; the first batch, which starts the workers, is
not counted.  On a machine with fewer free cores than workers, workers share them, and the figures say so.

What to expect: without workers every batch is waited for, 1 / (1 + ratio) of the time; with enough of them (workers x
ratio above 1, and cores to run them) none is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def collection(folder: Path, pages: int, pixels: int) -> Any:
    """Pages of lines of text and a photograph-like figure, A4, each a JPEG file, and a query for each."""
    import numpy as np
    from PIL import Image, ImageDraw

    from smart_train.data.collection import Collection, Document

    width = int((pixels / 2**0.5) ** 0.5)
    size, rng, corpus = (width, int(width * 2**0.5)), np.random.default_rng(0), {}
    for number in range(pages):
        page = Image.new("RGB", size, "white")
        pen = ImageDraw.Draw(page)
        for line in range(20, size[1] - 20, 18):
            pen.text((30, line), f"{number} " + " ".join(map(str, rng.integers(0, 10**6, width // 50))), fill="black")
        rough = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        page.paste(rough.resize((width // 2, width // 3), Image.Resampling.BICUBIC), (width // 4, size[1] // 3))
        page.save(folder / f"{number}.jpg", quality=90)
        corpus[f"d{number}"] = Document(f"d{number}", image=str(folder / f"{number}.jpg"))
    queries = {f"q{n}": f"the page numbered {n}" for n in range(pages)}
    return Collection("pages", corpus, queries, {f"q{n}": {f"d{n}": 1} for n in range(pages)})


def loader(made: Any, preprocess: Any, batch: int, workers: int, out: Path) -> Any:
    from accelerate import Accelerator

    from smart_train.data.batch_sampler import pair_groups
    from smart_train.data.collate import Collator, Pairs
    from smart_train.training.arguments import training_arguments
    from smart_train.training.dataloader import TrainerInputs, plan_batches, train_loader

    block = {"per_device_train_batch_size": batch, "dataloader_num_workers": workers, "use_cpu": True}
    args, pairs = training_arguments(block, out), Pairs(made)
    collate = TrainerInputs(Collator(made, preprocess), on_host=True)
    return train_loader(pairs, plan_batches(pair_groups(made, pairs.rows), args), collate, args, Accelerator(cpu=True))


def waits(batches: Any, step: float, steps: int) -> dict[str, float]:
    """Seconds a step waited, their share of the time, and pages brought a second, over ``steps`` batches."""
    if len(batches) <= steps:
        raise SystemExit(f"{len(batches)} batches for {steps} steps and one before them; ask for more --pages")
    waited = 0.0
    source = iter(batches)
    next(source)
    time.sleep(step)
    begin = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        next(source)
        waited += time.perf_counter() - asked
        time.sleep(step)
    seconds = time.perf_counter() - begin
    return {"waited": waited / steps, "share": waited / seconds, "steps_per_second": steps / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=48)
    parser.add_argument("--pixels", type=int, default=2**20, help="of a stored page, and of what the model is given")
    parser.add_argument("--batch", type=int, default=4, help="pages of a batch")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratio", type=float, nargs="+", default=[1.0, 2.0], help="step / time to make a batch")
    parser.add_argument("--step", type=float, help="seconds of a step, instead of --ratio")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()

    import tiny
    import torch

    from smart_train.config.schema import ModelBlock
    from smart_train.models.encoder import SmartEncoder

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        model = ModelBlock(max_pixels=options.pixels)
        encoder = SmartEncoder(str(tiny.qwen3vl(folder / "model")), model=model, device="cpu")
        encoder.st.max_seq_length = 2**15  # the tiny one's 512 would cut a page's placeholders; nothing is forwarded
        made = collection(folder, options.pages, options.pixels)
        alone = loader(made, encoder.preprocess, options.batch, 0, folder / "out")
        making = waits(alone, 0.0, options.steps)["waited"]
        about = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "pixels": options.pixels, "batch": options.batch}
        found: dict[str, Any] = {**about, "seconds_of_a_batch": making, "runs": []}
        print(f"{making:.2f} s to make a batch of {options.batch} pages in one process; {about}")
        for step in [options.step] if options.step is not None else [ratio * making for ratio in options.ratio]:
            for workers in options.workers:
                runs = []
                for _ in range(options.repeats):
                    batches = loader(made, encoder.preprocess, options.batch, workers, folder / "out")
                    runs.append(waits(batches, step, options.steps))
                row = {key: median(run[key] for run in runs) for key in runs[0]}
                found["runs"].append({"step": step, "workers": workers, **row})
                told = f"waits {row['waited']:.3f} s, {row['share']:.0%} of the time"
                print(f"step {step:.2f} s, {workers} workers: {told}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
