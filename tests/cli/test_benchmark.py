"""``smart-train benchmark``: results filed and told, what is there not run again, what cannot be run said before."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import datasets
import local_tasks
import mmeb_layout
import pytest
import torch

pytest.importorskip("mteb")

import mteb  # noqa: E402
from mteb.tasks import (  # noqa: E402
    AskUbuntuDupQuestions,
    NanoSciFactRetrieval,
    STSBenchmarkSTS,
    Vidore3FinanceEnRetrieval,
    VidoreArxivQARetrieval,
)

from smart_train.benchmarks import mteb_runs as benchmark_runs  # noqa: E402
from smart_train.benchmarks.mteb_models import (  # noqa: E402
    CorpusCache,
    SharedEncoder,
    content_key,
    mteb_models,
)
from smart_train.benchmarks.mteb_runs import find_tasks, run_tasks  # noqa: E402
from smart_train.cli.main import main  # noqa: E402
from smart_train.core.embeddings import Embeddings, Tokens  # noqa: E402
from smart_train.core.errors import EvaluationError  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture
def local(tmp_path, monkeypatch):
    """The command's tasks, read from local folders; ``loaded`` counts how often."""
    first = local_tasks.local(NanoSciFactRetrieval, local_tasks.write_text(tmp_path / "nano", "train"))
    second = local_tasks.local(AskUbuntuDupQuestions, local_tasks.write_text(tmp_path / "ask", "test", given=3))
    rows = {"sentence1": ["a bridge", "a river", "the sun"], "sentence2": ["a road", "a lake", "a cat"]}
    loaded: list[str] = []

    def load(self, **options):
        loaded.append("STS")
        self.dataset = {"test": datasets.Dataset.from_dict(rows | {"score": [4.0, 3.0, 0.0]})}
        self.data_loaded = True

    third = type("LocalSTS", (STSBenchmarkSTS,), {"load_data": load})()
    broken = local_tasks.local(NanoSciFactRetrieval, tmp_path / "nowhere", name="Nowhere")
    for task in (first, second):
        plain = task.load_data
        task.load_data = lambda plain=plain, task=task, **o: loaded.append(task.metadata.name) or plain(**o)
    monkeypatch.setattr(benchmark_runs, "find_tasks", lambda names: [first, broken, second, third])
    return loaded


def test_every_task_runs_in_every_mode_it_can_and_what_is_there_is_not_run_again(local, tiny_bert, tmp_path, capsys):
    output = tmp_path / "out"
    asked = ["benchmark", "--model", str(tiny_bert), "--tasks", "NanoBEIR", "--output", str(output)]
    assert main(asked) == 1  # one of four has no data
    said = capsys.readouterr()
    assert "Nowhere: no result" in said.err and "3 of 4 tasks" in said.out
    found = json.loads((output / "benchmark.json").read_text())
    assert set(found["tasks"]) == {"NanoSciFactRetrieval", "AskUbuntuDupQuestions", "STSBenchmark"}
    assert found["skipped"] == {"STSBenchmark": ["late", "hybrid"]} and list(found["failed"]) == ["Nowhere"]
    nano = found["tasks"]["NanoSciFactRetrieval"]
    assert list(nano) == ["pooled", "late", "hybrid"] and all(row["main"] == "ndcg_at_10" for row in nano.values())
    assert len({row["ndcg_at_10"] for row in nano.values()}) == 3 and "recall_at_10" in nano["late"]
    row = next(line for line in said.out.splitlines() if line.startswith("NanoSciFactRetrieval"))
    assert row.split()[2:] == [f"{nano[mode]['main_score']:.4f}" for mode in ("pooled", "late", "hybrid")]
    filed = sorted(path.parts[-2:] for path in (output / "results").rglob("NanoSciFactRetrieval.json"))
    assert filed == [(f"mode_{mode}", "NanoSciFactRetrieval.json") for mode in ("hybrid", "late", "pooled")]
    assert sorted(local) == ["AskUbuntuDupQuestions", "NanoSciFactRetrieval", "STS"]  # loaded once for all modes
    assert main([*asked, "--modes", "late", "pooled"]) == 1
    assert sorted(local) == ["AskUbuntuDupQuestions", "NanoSciFactRetrieval", "STS"]  # and not again
    again = json.loads((output / "benchmark.json").read_text())["tasks"]
    assert again["NanoSciFactRetrieval"] == {mode: nano[mode] for mode in ("pooled", "late")}
    late = [*asked, "--modes", "pooled", "--layer", "2"]  # another layer is another model
    main(late)
    assert local.count("NanoSciFactRetrieval") == 2


def test_mmeb_is_run_from_its_folder(tiny_qwen3vl, tmp_path, capsys):
    root, output = mmeb_layout.write_images(tmp_path / "data"), tmp_path / "out"
    mmeb_layout.write_charts(root)
    asked = ["benchmark", "--model", str(tiny_qwen3vl), "--mmeb", str(root), "--output", str(output)]
    assert main([*asked, "--tasks", "OK-VQA", "VisRAG_ChartQA"]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 tasks" in said and "visdoc, 1 of 24 tasks" in said
    assert set(json.loads((output / "mmeb.json").read_text())["tasks"]) == {"OK-VQA", "VisRAG_ChartQA"}
    assert main([*asked, "--tasks", "OK-VQA", "--own-prompts"]) == 2
    assert "choose another output folder" in capsys.readouterr().err
    assert main([*asked, "--tasks", "image"]) == 1
    said = capsys.readouterr()
    assert "VOC2007: no result (DataError: VOC2007: no rows; looked for" in said.err and "3 of 36 tasks" in said.out


@pytest.mark.slow
def test_several_processes_share_the_tasks_and_the_last_word_is_of_all(tiny_qwen3vl, tmp_path):
    from launches import environment, program

    root, output = mmeb_layout.write_images(tmp_path / "data"), tmp_path / "out"
    mmeb_layout.write_charts(root)
    asked = ["benchmark", "--model", str(tiny_qwen3vl), "--mmeb", str(root), "--output", str(output), "--tasks"]
    command = [program("smart-train"), *asked, "OK-VQA", "CIRR", "VOC2007", "VisRAG_ChartQA", "--processes", "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr[-2000:]  # one of the four has no rows
    assert "VOC2007: no result" in done.stderr and done.stdout.count("3 of 4 tasks") == 1
    found = json.loads((output / "mmeb.json").read_text())
    assert set(found["tasks"]) == {"OK-VQA", "CIRR", "VisRAG_ChartQA"} and list(found["failed"]) == ["VOC2007"]
    assert main([*asked[:-3], "--output", str(tmp_path / "alone"), "--tasks", "OK-VQA", "CIRR", "VisRAG_ChartQA"]) == 0
    alone = json.loads((tmp_path / "alone" / "mmeb.json").read_text())
    assert alone["tasks"] == found["tasks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--tasks: name MTEB's tasks or benchmarks"),
        (["--tasks", "NanoSciFactRetrieva"], "did you mean NanoSciFactRetrieval"),
        (["--tasks", "SciFact", "--as-video"], "--as-video and --own-prompts belong to MMEB-V2"),
        (["--tasks", "SciFact", "--task-prompts", "Instruct:"], r"has no {prompt} in it"),
        (["--tasks", "SciFact", "--processes", "2"], "--processes shares MMEB-V2's tasks"),
        (["--mmeb", "nowhere"], "--mmeb: nowhere is no folder"),
        (["--mmeb", "."], "MMEB-V2 shows images, and"),
    ],
)
def test_what_cannot_be_run_is_said_before_a_model_is_loaded(
    arguments, message, real_base, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("smart_train.cli.benchmark.make_encoder", lambda options: pytest.fail("loaded"))
    assert main(["benchmark", "--model", str(real_base), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_benchmarks_are_found_by_name_and_a_wrong_name_has_its_nearest():
    names = [task.metadata.name for task in find_tasks(["NanoBEIR", "NanoSciFactRetrieval", "ViDoRe(v1)"])]
    assert len(names) == len(set(names)) == 23 and "VidoreArxivQARetrieval" in names
    for benchmark, size in (("BEIR", 15), ("ViDoRe(v2)", 4), ("ViDoRe(v3)", 10)):
        assert len(find_tasks([benchmark])) == size
    with pytest.raises(EvaluationError, match="no task or benchmark 'NanoBIER'; did you mean NanoBEIR"):
        find_tasks(["NanoBIER"])


def test_pages_that_several_languages_share_are_encoded_once(tmp_path, tiny_qwen3vl, monkeypatch):
    from smart_train.models.encoder import SmartEncoder

    encoder = SmartEncoder(str(tiny_qwen3vl), device="cpu")
    languages = {"english": ["eng-Latn"], "french": ["fra-Latn"]}
    shared = local_tasks.write_pages_by_language(tmp_path / "shared")
    task = local_tasks.local(Vidore3FinanceEnRetrieval, shared, eval_langs=languages)
    sizes, encode = [], encoder.encode_documents
    monkeypatch.setattr(encoder, "encode_documents", lambda rows, **o: sizes.append(len(rows)) or encode(rows, **o))
    found = {}
    for mode in ("pooled", "late", "hybrid"):  # by themselves, every corpus anew
        task.of_subset = {}
        mteb.evaluate(mteb_models(encoder)[mode], task, cache=None, co2_tracker=False, show_progress_bar=False)
        found[mode] = task.of_subset
    assert sizes == [6] * 6
    sizes.clear()
    asked, encode_queries = [], encoder.encode_queries
    monkeypatch.setattr(
        encoder, "encode_queries", lambda rows, **o: asked.append(len(rows)) or encode_queries(rows, **o)
    )
    ran = run_tasks(encoder, [task], tmp_path / "out")
    assert sizes == [6] and not list((tmp_path / "out").glob("vectors*"))
    assert asked == [4, 4]  # each language's queries once, for all three modes
    for mode, row in ran.tasks["Vidore3FinanceEnRetrieval"].items():
        values = [one["ndcg_cut_10"] for scores in found[mode].values() for one in scores.values()]
        assert row["ndcg_at_10"] == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_vectors_that_a_killed_run_left_are_never_taken_for_another_encoders(tmp_path):
    rows = datasets.Dataset.from_dict({"id": ["a"], "text": ["one"]})
    theirs, ours = (Embeddings(torch.full((1, 1), v), Tokens(torch.ones(1, 1), torch.tensor([1]))) for v in (1.0, 2.0))
    list(CorpusCache(tmp_path / "vectors").read_or_make(rows, lambda: iter([theirs])))  # whole, and never cleared
    shared = SharedEncoder(None)
    with shared.sharing(["pooled"], tmp_path / "vectors"):
        found = list(shared.corpora.read_or_make(rows, lambda: iter([ours])))
    assert torch.equal(found[0].pooled, ours.pooled) and not (tmp_path / "vectors").exists()


def test_a_full_disk_costs_time_and_no_figure(tmp_path, caplog):
    rows = datasets.Dataset.from_dict({"id": ["a", "b"], "text": ["one", "two"]})
    one = Embeddings(torch.ones(2, 1), Tokens(torch.ones(3, 1), torch.tensor([1, 2])))
    corpora = CorpusCache(tmp_path / "file")
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        made = []
        found = list(corpora.read_or_make(rows, lambda made=made: iter(made.append(1) or [one])))
        assert made == [1] and torch.equal(found[0].pooled, one.pooled)
    assert "encode it anew" in caplog.text
    corpora = CorpusCache(tmp_path / "kept")
    kept = [list(corpora.read_or_make(rows, lambda: iter([one, one])))[0] for _ in range(2)]
    assert torch.equal(kept[0].tokens.values, kept[1].tokens.values)
    assert content_key(rows) != content_key(rows.select([1, 0])) != content_key(rows.select([1]))
    begun = corpora.read_or_make(rows.select([1]), lambda: iter([one, one]))
    next(begun)  # a search that stopped half way leaves nothing to be taken for a corpus
    begun.close()
    assert len(list(corpora.read_or_make(rows.select([1]), lambda: iter([one, one, one])))) == 3


def test_a_task_that_cannot_be_read_fails_before_its_data_are_fetched(tmp_path, tiny_bert):
    from smart_train.models.encoder import SmartEncoder

    pages = local_tasks.local(VidoreArxivQARetrieval, tmp_path / "nowhere")
    pages.load_data = lambda **options: pytest.fail("fetched")
    ran = run_tasks(SmartEncoder(str(tiny_bert), device="cpu"), [pages], tmp_path)
    assert "its document side is image; local/model reads ['text']" in ran.failed["VidoreArxivQARetrieval"]


def test_a_table_without_figures_is_a_head_alone(tmp_path, real_base):
    from smart_train.models.encoder import SmartEncoder

    ran = run_tasks(SmartEncoder(str(real_base), device="cpu"), [], Path(tmp_path))
    assert ran.table().split() == ["task", "metric"]
