"""Measure what data of 100 thousand to 10 million rows cost: the first open, later ones, workers, and planning.

    python tests/benchmarks/data_scale.py --rows 100000 1000000 --kinds jsonl parquet --folder /tmp/scale
    python tests/benchmarks/data_scale.py --rows 1000000 --what stream --folder /tmp/scale
    python tests/benchmarks/data_scale.py --rows 1000000 --kinds beir --what open open --folder /tmp/scale
    python tests/benchmarks/data_scale.py --documents 10000 100000 1000000 --folder /tmp/scale

Every measurement is a fresh process.  Rows are made up: a query of 8 words, a positive of 24 and 4 negatives, which are
positives of other rows.  Of ``beir``, the rows are documents; a tenth as many queries have one each.  Memory is given
as its peak (VmHWM, with mapped files) while a table is opened, and else as shares (PSS), in which a page that several
processes have counts once: of memory, and of mapped files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

WORDS = [f"word{number}" for number in range(5000)]


def passage(number: int, words: int) -> str:
    """Return the same words for the same number, as fast as they can be joined."""
    begin = number * 2654435761 % 4900
    return f"{number} " + " ".join(WORDS[begin : begin + words])


def generate(file: Path, rows: int) -> None:
    """Write the rows; a passage is made anew from its number wherever it is named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw, names = random.Random(0), ("query", "positive", *(f"negative_{n}" for n in range(1, 5)))

    def row(number: int) -> list[str]:
        others = [draw.randrange(rows) for _ in range(4)]
        return [f"ask {passage(number, 8)}", passage(number, 24), *(passage(other, 24) for other in others)]

    if file.suffix == ".jsonl":
        with file.open("w", encoding="utf8") as stream:
            for number in range(rows):
                stream.write(json.dumps(dict(zip(names, row(number), strict=True))) + "\n")
        return
    with pq.ParquetWriter(file, pa.schema([(name, pa.string()) for name in (*names, "unread")])) as writer:
        for begin in range(0, rows, 20_000):
            columns = list(zip(*(row(number) for number in range(begin, min(rows, begin + 20_000))), strict=True))
            arrays = [pa.array(column) for column in (*columns, ["not read " * 20] * len(columns[0]))]
            writer.write_batch(pa.record_batch(arrays, schema=writer.schema))


def generate_beir(folder: Path, documents: int) -> None:
    """Write a collection in BEIR's layout: documents of 24 words, a tenth as many queries of 8, one answer each."""
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w", encoding="utf8") as stream:
        for number in range(documents):
            row = {"_id": f"d{number}", "title": "", "text": passage(number, 24)}
            stream.write(json.dumps(row) + "\n")
    queries = documents // 10
    with (folder / "queries.jsonl").open("w", encoding="utf8") as stream:
        for number in range(queries):
            stream.write(json.dumps({"_id": f"q{number}", "text": f"ask {passage(number * 10, 8)}"}) + "\n")
    for split, begin, end in (("test", 0, 300), ("dev", 300, 500), ("train", 500, queries)):
        lines = "".join(f"q{number}\td{number * 10}\t1\n" for number in range(begin, end))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)


def memory(pids: list[int]) -> dict[str, float]:
    """Return sums over processes in GB, in which what several share counts once: of memory, and of mapped files, whose
    pages the system takes back when it needs them."""
    found = {"Pss_Anon": 0, "Pss_File": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] += int(rest.split()[0])
    return {"memory": round(found["Pss_Anon"] / 2**20, 2), "files": round(found["Pss_File"] / 2**20, 2)}


def peak() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 2**20, 2)


def measure_open(file: Path) -> dict[str, float]:
    import datasets  # noqa: F401
    import torch  # noqa: F401

    from smart_train.config.schema import DataBlock
    from smart_train.data.load import load

    base, begun, worked = peak(), time.perf_counter(), time.process_time()
    negatives = 0 if file.is_dir() else 4
    train, dev, test = load(DataBlock(path=str(file), negatives=negatives, dev=200, test=300))
    seconds, worked = time.perf_counter() - begun, time.process_time() - worked
    sizes = {"queries": len(train.queries), "dev": len(dev.queries), "test": len(test.queries)}
    return {**sizes, "seconds": round(seconds, 1), "CPU s": round(worked, 1), "imports GB": base, "peak GB": peak()}


def measure_workers(file: Path, workers: int = 4, batch: int = 64, steps: int = 200) -> dict[str, float]:
    """Open, plan an epoch's batches, and draw some of them in data workers."""
    from torch.utils.data import DataLoader

    from smart_train.config.schema import DataBlock
    from smart_train.data.batch_sampler import PairBatchSampler, pair_groups
    from smart_train.data.collate import Collator, Pairs
    from smart_train.data.load import load

    train, _, _ = load(DataBlock(path=str(file), negatives=4, dev=200, test=300))
    opened = memory([os.getpid()])
    begun = time.process_time()
    pairs = Pairs(train)
    sampler = PairBatchSampler(pair_groups(train, pairs.rows), batch)
    batches = iter(sampler)
    next(batches)
    planned = time.process_time() - begun
    found = {"plan CPU s": round(planned, 1), "plan peak GB": peak(), "batches": len(sampler)}
    del batches
    collate = Collator(train, _no_tokens, negatives=4)
    loader = iter(DataLoader(pairs, batch_sampler=sampler, collate_fn=collate, num_workers=workers))
    begun = time.perf_counter()
    for _ in range(steps):
        next(loader)
    pace = steps / (time.perf_counter() - begun)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found |= {f"open {name} GB": value for name, value in opened.items()}
    found |= {f"rank {name} GB": value for name, value in memory([os.getpid(), *map(int, children)]).items()}
    return found | {"batches a second": round(pace, 1)}


def measure_stream(file: Path, batch: int = 64) -> dict[str, float]:
    """Read a pass as one data worker does with ``data.streaming``, then begin again at the last batch of it."""
    import datasets  # noqa: F401
    import torch  # noqa: F401

    from smart_train.data.streaming import RowStream, StreamedBatches

    base, begun, worked = peak(), time.perf_counter(), time.process_time()
    batches = StreamedBatches(RowStream.open(file, negatives=4), batch)
    batches[0]
    found = {"first batch CPU s": round(time.process_time() - worked, 2), "imports GB": base}
    rows, last = int(file.stem.split("-")[1]), 0
    for last in range(1, rows // batch):
        place = batches[last].place
    worked, seconds = time.process_time() - worked, time.perf_counter() - begun
    found |= {"rows a CPU s": round(rows / worked), "seconds": round(seconds, 1), "peak GB": peak()}
    resumed, begun = StreamedBatches(batches.stream, batch), time.process_time()
    resumed.start = place
    resumed[last]
    return found | {"resume CPU s": round(time.process_time() - begun, 2)}


def _no_tokens(contents: list[str], role: str) -> dict[str, object]:
    import torch

    return {"attention_mask": torch.ones(len(contents), 1, dtype=torch.int64)}


# Ranking, mining, calibration and BM25 of made-up vectors and words

QUERIES, TOKENS, WIDTH = 50, 8, 32


class MadeUp:
    """An encoder whose vectors are noise, a little of it the number of the row that the text begins with."""

    def __init__(self) -> None:
        from smart_train.config.schema import LateBlock

        self.late = LateBlock()

    def encode(self, contents: list[str], **options: object) -> object:
        import torch

        from smart_train.core.embeddings import Embeddings, Tokens

        numbers = torch.tensor([int(text.split()[0]) for text in contents], dtype=torch.float64)
        places = torch.arange(1, 1 + (TOKENS + 1) * WIDTH, dtype=torch.float64)
        values = torch.sin(numbers[:, None] * places * 0.7391 + places**2).float()
        pooled, tokens = values[:, :WIDTH], values[:, WIDTH:].reshape(-1, WIDTH)
        lengths = torch.full((len(contents),), TOKENS)
        norm = torch.nn.functional.normalize
        return Embeddings(norm(pooled, dim=1), Tokens(norm(tokens, dim=1), lengths))

    encode_queries = encode_documents = encode


def made_up(documents: int) -> object:
    from smart_train.data.collection import Collection, Document

    corpus = {f"d{n}": Document(f"d{n}", passage(n, 24)) for n in range(documents)}
    queries = {f"q{n}": passage(n * 7, 8) for n in range(QUERIES)}
    return Collection("made up", corpus, queries, {f"q{n}": {f"d{n * 7}": 1} for n in range(QUERIES)})


def timed(work: object, documents: Path) -> dict[str, float]:
    """Give the work a collection, and return CPU seconds and how much the peak grew."""
    import smart_train.evaluation.bm25
    import smart_train.evaluation.calibration
    import smart_train.mining.miner  # noqa: F401

    collection = made_up(int(str(documents)))
    begun, before = time.process_time(), peak()
    work(collection)
    return {"CPU s": round(time.process_time() - begun, 1), "before GB": before, "grown GB": round(peak() - before, 2)}


def rank(collection: object) -> None:
    from smart_train.evaluation.retrieval import evaluate

    evaluate(MadeUp(), collection, batch_size=512, bootstrap=10)


def mine(collection: object) -> None:
    from smart_train.mining.miner import mine as mine_negatives

    mine_negatives(collection, MadeUp(), batch_size=512)


def calibrate(collection: object) -> None:
    from smart_train.evaluation.calibration import calibrate as fit

    fit(MadeUp(), collection, batch_size=512)


def bm25(collection: object) -> None:
    from smart_train.evaluation.bm25 import evaluate_bm25

    texts = {id: document.text for id, document in collection.corpus.items()}
    evaluate_bm25(texts, collection.queries, collection.qrels, k=[10], bootstrap=10)


def alone(what: str, *arguments: object) -> dict[str, object]:
    """Run one measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--alone", what, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--documents", type=int, nargs="*", default=[])
    parser.add_argument("--kinds", nargs="*", default=["jsonl", "parquet"])
    parser.add_argument("--what", nargs="*", default=["open", "open", "workers", "stream"])
    parser.add_argument("--folder", type=Path, default=Path("scale"))
    parser.add_argument("--alone", nargs="+")
    options = parser.parse_args()
    if options.alone:
        what, *arguments = options.alone
        print(json.dumps(MEASURES[what](*map(Path, arguments))))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["HF_DATASETS_CACHE"] = str(options.folder / "cache")
    for documents in options.documents:
        for name in ("rank", "mine", "calibrate", "bm25"):
            print(json.dumps({"documents": documents, "what": name, **alone(name, documents)}), flush=True)
    for rows in options.rows:
        for kind in options.kinds:
            file = options.folder / f"rows-{rows}.{kind}"
            if not file.exists():
                (generate_beir if kind == "beir" else generate)(file, rows)
            size = round(sum(one.stat().st_size for one in [file, *file.rglob("*")] if one.is_file()) / 2**30, 2)
            for name in options.what:
                print(
                    json.dumps({"rows": rows, "kind": kind, "GB": size, "what": name, **alone(name, file)}), flush=True
                )


MEASURES = {"open": measure_open, "workers": measure_workers, "stream": measure_stream}
MEASURES |= {work.__name__: partial(timed, work) for work in (rank, mine, calibrate, bm25)}

if __name__ == "__main__":
    main()
