"""Mining beside brute force over whole score matrices, on tiny and real models; what is written is read and trains."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sysconfig
import weakref
from functools import partial
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
import tiny_data
import torch
from PIL import Image
from resumed import differences

from smart_train.cli import mine as command
from smart_train.config.schema import AdapterBlock, DataBlock, HybridBlock, LateBlock, ModelBlock, ObjectiveBlock
from smart_train.core.disk import disk_fault
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import DataError
from smart_train.data.collate import Collator, Pairs
from smart_train.data.collection import Collection, Document
from smart_train.data.load import load
from smart_train.data.readers.pydocs import read_pydocs
from smart_train.evaluation.topk import tie_hash
from smart_train.mining import pair_scores
from smart_train.mining.folder import mine_folder
from smart_train.mining.miner import RERANKED, mine
from smart_train.mining.mining_report import Ratios
from smart_train.mining.selection import MiningOptions
from smart_train.models.encoder import SmartEncoder
from smart_train.training.arguments import training_arguments
from smart_train.training.trainer import SmartTrainer


class Lookup:
    """An encoder of made-up embeddings, the same for the same text; counts what it encodes."""

    def __init__(self, hybrid: HybridBlock | None = None, width: int = 8) -> None:
        self.late = LateBlock(hybrid=hybrid or HybridBlock())
        self.width, self.encoded = width, 0

    def _of(self, content) -> tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(content, str):
            content = str(content.tobytes()[:64])
        draw = torch.Generator().manual_seed(sum(map(ord, content)) * 977 + len(content))
        rows = torch.randn(2 + len(content) % 4, self.width, generator=draw)
        rows[:, 0] += 1.5  # mostly positive cosines, as embedders have
        rows = torch.nn.functional.normalize(rows, dim=-1)
        return rows[0], rows[1:]

    def encode_queries(self, contents, **options) -> Embeddings:
        pooled, tokens = zip(*(self._of(content) for content in contents), strict=True)
        lengths = torch.tensor([len(rows) for rows in tokens])
        return Embeddings(torch.stack(pooled), Tokens(torch.cat(tokens), lengths))

    def encode_documents(self, contents, dtype=None, **options) -> Embeddings:
        self.encoded += len(contents)
        found = self.encode_queries(contents)
        return Embeddings(found.pooled, found.tokens.to(dtype or torch.float32))


def loops(collection: Collection, encoder, mode: str, hybrid: HybridBlock) -> dict[str, dict[str, float]]:
    """query -> document -> score, one pair after another in float64."""

    def parts(content, queries):
        found = encoder.encode_queries([content]) if queries else encoder.encode_documents([content])
        tokens = found.tokens.values.double()
        return found.pooled[0].double(), tokens if queries else found.tokens.to(torch.float16).values.double()

    documents = {d.id: parts(d.content(), False) for d in collection.corpus.values()}
    table = {}
    for query, text in collection.queries.items():
        pooled, tokens = parts(text, True)
        table[query] = {}
        for name, (vector, rows) in documents.items():
            one = float(pooled @ vector)
            late = sum(max(float(a @ b) for b in rows) for a in tokens) / len(tokens)
            if mode == "hybrid" and hybrid.scaling == "standardised":
                one, late = (one - hybrid.pooled_mean) / hybrid.pooled_std, (late - hybrid.late_mean) / hybrid.late_std
            whole = (hybrid.pooled * one + hybrid.late * late) / (hybrid.pooled + hybrid.late)
            table[query][name] = {"pooled": one, "late": late, "hybrid": whole}[mode]
    return table


def many(documents: int = 90, queries: int = 15) -> Collection:
    """Passages of four files, some of them copies; 1 to 3 answers a query."""
    draw = Random(1)
    texts = [f"{tiny_data.passage(n % 24)} {n if n % 9 else 0}" for n in range(documents)]
    corpus = {f"d{n}": Document(f"d{n}", texts[n], file=f"f{n % 4}", page=n // 4) for n in range(documents)}
    asked = {f"q{n}": f"what stands beside the {tiny_data.TOPICS[n]}" for n in range(queries)}
    qrels = {
        q: dict.fromkeys((f"d{n}" for n in draw.sample(range(documents), 1 + k % 3)), 1) for k, q in enumerate(asked)
    }
    return Collection("many", corpus, asked, qrels)


def brute(collection: Collection, table, options: MiningOptions, left=frozenset()) -> dict[str, list[str]]:
    """Negatives from the whole table by plain loops: answers, their copies and neighbours, thresholds, ranks."""
    chosen = {}
    for query in collection.queries:
        answers = [collection.corpus[d] for d in collection.relevant(query)]
        positive = max(table[query][d.id] for d in answers)
        shown = {d.text for d in answers}
        rank, passed = 0, []
        for name in sorted(table[query], key=lambda d: (-table[query][d], tie_hash(query, d))):  # noqa: B023
            document, score = collection.corpus[name], table[query][name]
            near = options.window is not None and any(
                document.file == a.file and abs(document.page - a.page) <= options.window for a in answers
            )
            if name in collection.relevant(query) or near or document.text in shown or name in left:
                continue
            shown.add(document.text)
            if options.range[0] <= rank < options.range[1]:
                share = 1.0 if options.max_relative is None else options.max_relative
                high = options.max_relative is not None and score >= positive - (1 - share) * abs(positive)
                if not high and (options.margin is None or score < positive - options.margin):
                    passed.append(name)
            rank += 1
        chosen[query] = passed[options.skip_top :][: options.k]
    return chosen


STANDARDISED = HybridBlock(1.0, 2.0, "standardised", 0.5, 0.2, 0.6, 0.1)
CASES = [
    (MiningOptions(k=5, mode="pooled"), HybridBlock()),
    (MiningOptions(k=5, mode="late", max_relative=0.9, window=1), HybridBlock()),
    (MiningOptions(k=5, mode="hybrid", range=(2, 20), skip_top=1), HybridBlock(1.0, 3.0)),
    (MiningOptions(k=7, mode="hybrid", margin=0.3, max_relative=None, window=0), STANDARDISED),
    (MiningOptions(k=80, mode="hybrid", max_relative=None, range=(0, 1000)), HybridBlock(0.0, 1.0)),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_negatives_are_those_of_the_whole_score_matrix(number, monkeypatch):
    options, hybrid = CASES[number]
    monkeypatch.setattr("smart_train.evaluation.encode.TEXT_BATCHES", 2)  # portions of 6 documents
    monkeypatch.setattr("smart_train.evaluation.scoring.QUERY_TOKENS", 12)  # blocks of a few queries
    collection, encoder = many(), Lookup(hybrid)
    left = {"d7", "d50", "d51"}
    found = mine(collection, encoder, options, held_out=left, batch_size=3)
    answered = {d for query in collection.queries for d in collection.relevant(query)}
    table = loops(collection, encoder, options.mode, hybrid)
    expected = brute(collection, table, options, left - answered)
    assert found.document_ids() == expected
    assert any(expected.values()) and found.counts["mined"] == sum(map(len, expected.values()))
    assert found.counts["short"] == sum(len(row) < options.k for row in expected.values())
    for query, mined in found.negatives.items():
        assert mined.positive == pytest.approx(max(table[query][d] for d in collection.relevant(query)), abs=2e-3)
        assert list(mined.scores) == pytest.approx([table[query][d] for d in mined.documents], abs=2e-3)


def test_counts_say_what_became_of_every_document_within_the_range():
    collection, encoder = many(), Lookup()
    options = MiningOptions(k=3, mode="pooled", window=1, range=(0, 1000), margin=0.05)
    counts = mine(collection, encoder, options).counts
    reasons = ("answer", "duplicate", "window", "max_relative", "margin", "more", "mined")
    assert sum(counts[name] for name in reasons) == len(collection.queries) * len(collection.corpus)
    assert all(counts[name] for name in reasons), counts
    assert counts["answer"] == len(collection.pairs())


def test_a_query_that_stands_in_the_corpus_is_no_negative_of_its_own():
    collection = many()
    collection.corpus["q3"] = Document("q3", collection.queries["q3"])
    found = mine(collection, Lookup(), MiningOptions(k=1000, mode="pooled", max_relative=None, range=(0, 1000)))
    holders = {query for query, mined in found.negatives.items() if "q3" in mined.documents}
    assert holders == collection.queries.keys() - {"q3"} and found.counts["itself"] == 1


def test_queries_without_an_answer_are_counted_and_none_at_all_is_an_error():
    collection = many()
    collection.queries["lost"], collection.qrels["lost"] = "a question", {"gone": 1}
    collection.queries["unasked"] = "another"
    found = mine(collection, Lookup(), MiningOptions(mode="pooled"))
    assert found.counts["unanswered"] == 2 and not {"lost", "unasked"} & found.negatives.keys()
    collection.qrels = {"lost": {"gone": 1}}
    with pytest.raises(DataError, match="none of 17 queries has a positive in the corpus of 90"):
        mine(collection, Lookup())


def test_a_stopped_pass_goes_on_where_it_was_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("smart_train.evaluation.encode.TEXT_BATCHES", 2)
    monkeypatch.setattr("smart_train.evaluation.scoring.QUERY_TOKENS", 12)
    options, state = MiningOptions(k=4, mode="hybrid", window=0), tmp_path / "unfinished.safetensors"
    whole = mine(many(), Lookup(), options, batch_size=3)

    class Power(RuntimeError):
        pass

    class Failing(Lookup):
        def encode_documents(self, contents, **more):
            if self.encoded >= 40:
                raise Power
            return super().encode_documents(contents, **more)

    first = Failing()
    with pytest.raises(Power):
        mine(many(), first, options, batch_size=3, state=state, key="k", save_every=0.0)
    second = Lookup()
    resumed = mine(many(), second, options, batch_size=3, state=state, key="k", save_every=0.0)
    assert first.encoded == 42 and second.encoded == 90 - 42
    assert resumed.negatives == whole.negatives and resumed.counts == whole.counts
    third = Lookup()  # the finished pass is there as well, should writing its result have failed
    assert (
        mine(many(), third, options, batch_size=3, state=state, key="k").negatives == whole.negatives
        and not third.encoded
    )
    other = Lookup()
    assert mine(many(), other, options, batch_size=3, state=state, key="another").negatives == whole.negatives
    assert other.encoded == 90


class Judge:
    """A reranker or teacher of made-up scores that counts its pairs, and ends the process, so to speak, at a call."""

    def __init__(self, stops: int | None = None, factor: float = 1.0) -> None:
        self.pairs, self.calls, self.stops, self.factor = 0, 0, stops, factor

    def __call__(self, pairs) -> list[float]:
        self.calls += 1
        if self.calls == self.stops:
            raise KeyboardInterrupt
        self.pairs += len(pairs)
        return [self.factor * Random(f"{query} {document}").uniform(-5, 9) for query, document in pairs]


def mined_folder(folder: Path, base: Path, reranker: Judge, teacher: Judge) -> dict[str, object]:
    """Mine, and return the folder's files, those that hold the date and the seconds without them."""
    encoder = SmartEncoder(str(base), device="cpu")
    options = MiningOptions(k=3, max_relative=None, range=(0, 9))
    mine_folder(DataBlock(path=str(folder)), encoder, options, reranker=reranker, teacher=teacher, save_every=0.0)
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            found[path.name] = [{**row, "miner": None} for row in pq.read_table(path).to_pylist()]
        elif path.name == "report.json":
            found[path.name] = {**json.loads(path.read_text()), "miner": None, "seconds": None}
        else:
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("stop", [("reranker", 1), ("reranker", 3), ("teacher", 1), ("teacher", 2), ("teacher", 4)])
def test_scores_of_a_reranker_and_a_teacher_are_paid_for_once(stop, tiny_bert, tmp_path, monkeypatch):
    """Stopped by Ctrl-C in one of their calls, and started again: the same files, no batch scored twice."""
    monkeypatch.setattr(pair_scores, "PAIRS", 12)
    for name in ("whole", "parts"):
        tiny_data.write_beir(tmp_path / name / "beir")
    whole = [Judge(), Judge()]
    expected = mined_folder(tmp_path / "whole" / "beir", tiny_bert, *whole)
    assert min(one.calls for one in whole) >= 4
    broken = [Judge(stop[1] if stop[0] == name else None) for name in ("reranker", "teacher")]
    with pytest.raises(KeyboardInterrupt):
        mined_folder(tmp_path / "parts" / "beir", tiny_bert, *broken)
    again = [Judge(), Judge()]
    found = mined_folder(tmp_path / "parts" / "beir", tiny_bert, *again)
    assert differences(found, expected) == []
    for first, second, both in zip(broken, again, whole, strict=True):
        tried = 13 if first.pairs else 0  # at most one query's pairs, which tell the scorer by its scores
        assert both.pairs <= first.pairs + second.pairs <= both.pairs + tried
    assert not list((tmp_path / "parts").rglob("unfinished*"))


@pytest.mark.parametrize("harm", ["half a line", "another byte", "zeros", "empty", "another key", "another scorer"])
def test_kept_scores_that_are_damaged_or_of_others_are_not_used(harm, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_scores, "PAIRS", 12)
    collection, state = many(), tmp_path / "unfinished.safetensors"
    options = MiningOptions(k=3, max_relative=None, range=(0, 9))
    with pytest.raises(KeyboardInterrupt):
        mine(collection, Lookup(), options, reranker=Judge(4), state=state, key="k")
    path = state.with_name(RERANKED)
    content = path.read_bytes()
    changed = {
        "half a line": content[:-9],
        "another byte": content.replace(b"d1", b"d2"),
        "zeros": content[:200] + bytes(300),
        "empty": b"",
    }
    path.write_bytes(changed.get(harm, content))
    factor = 2.0 if harm == "another scorer" else 1.0
    expected = mine(collection, Lookup(), options, reranker=Judge(factor=factor)).negatives
    more = {"state": state, "key": "another" if harm == "another key" else "k"}
    assert mine(collection, Lookup(), options, reranker=Judge(factor=factor), **more).negatives == expected
    used = Judge(factor=factor)  # the file is whole now: nothing but the trial is scored again
    assert mine(collection, Lookup(), options, reranker=used, **more).negatives == expected
    assert used.pairs <= 13


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"half"])
def test_a_damaged_state_is_said_and_mining_starts_anew(content, tmp_path, caplog):
    state = tmp_path / "unfinished.safetensors"
    state.write_bytes(content)
    options = MiningOptions(k=4)
    found = mine(many(), Lookup(), options, state=state, key="k", save_every=0.0)
    assert found.negatives == mine(many(), Lookup(), options).negatives
    assert "unfinished.safetensors is damaged" in caplog.text


@pytest.mark.parametrize("limit", [100, 1000, 2500, 4000, 9000])
def test_a_full_disk_while_mining_costs_no_result(limit, tiny_bert, tmp_path, monkeypatch):
    """No file gets longer than ``limit`` bytes, as on a full disk; then there is room, and the same call ends alike."""
    monkeypatch.setattr(pair_scores, "PAIRS", 12)
    for name in ("whole", "parts"):
        tiny_data.write_beir(tmp_path / name / "beir")
    expected = mined_folder(tmp_path / "whole" / "beir", tiny_bert, Judge(), Judge())
    folder = tmp_path / "parts" / "beir"
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(Exception) as told:
            mined_folder(folder, tiny_bert, Judge(), Judge())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert disk_fault(told.value) == "File too large", "the command says it in a sentence"
    assert differences(mined_folder(folder, tiny_bert, Judge(), Judge()), expected) == []


def test_a_pass_holds_a_portion_of_the_corpus_and_no_more(monkeypatch):
    monkeypatch.setattr("smart_train.evaluation.encode.TEXT_BATCHES", 1)
    alive, most = [0], [0]

    class Counting(Lookup):
        def encode_documents(self, contents, **more):
            found = super().encode_documents(contents, **more)
            alive[0] += len(contents)
            most[0] = max(most[0], alive[0])
            weakref.finalize(found.tokens.values, partial(gone, len(contents)))
            return found

    def gone(documents: int) -> None:
        alive[0] -= documents

    mine(many(documents=200), Counting(), MiningOptions(range=(0, 10)), batch_size=10)
    assert 10 <= most[0] <= 20


def pages() -> Collection:
    """Nine pages; 8 shows what 0 shows, stored as another file kind would be, and 7 what 6 shows."""
    images = [tiny_data.draw_page(n) for n in range(7)]
    images += [images[6].copy(), images[0].convert("RGBA")]
    corpus = {f"d{n}": Document(f"d{n}", image=image, file=f"b{n // 3}", page=n) for n, image in enumerate(images)}
    queries = {f"q{n}": f"find the page about {tiny_data.TOPICS[n]}" for n in range(6)}
    return Collection("pages", corpus, queries, {f"q{n}": {f"d{n}": 1} for n in range(6)})


@pytest.mark.parametrize("mode", ["pooled", "hybrid"])
def test_page_images_are_mined_and_copies_of_pages_are_found_by_their_pixels(tiny_qwen3vl, mode, tmp_path):
    encoder = SmartEncoder(str(tiny_qwen3vl), device="cpu")
    collection = pages()
    options = MiningOptions(k=20, mode=mode, max_relative=None, window=0)
    state = tmp_path / "state.safetensors"
    found = mine(collection, encoder, options, batch_size=2, state=state, key="k", save_every=0.0)
    for query, mined in found.negatives.items():
        own = "d" + query[1:]
        assert own not in mined.documents and len({"d6", "d7"} & set(mined.documents)) == 1
        assert not {"d0", "d8"} <= set(mined.documents)
        assert len(mined.documents) == 6  # of 9: without itself, and without one of each of two pairs of copies
    assert "d8" not in found.negatives["q0"].documents
    assert found.counts["duplicate"] == 12
    again = mine(collection, encoder, options, batch_size=2, state=state, key="k")  # hashes are remembered, too
    assert again.negatives == found.negatives
    scores = encoder.score(list(collection.queries.values()), [d.content() for d in collection.corpus.values()], mode)
    for row, mined in enumerate(found.negatives.values()):
        expected_scores = [float(scores[row, int(d[1:])]) for d in mined.documents]
        assert list(mined.scores) == pytest.approx(expected_scores, abs=5e-3)
        assert list(mined.scores) == sorted(mined.scores, reverse=True)


@pytest.fixture(scope="module")
def docstrings(tmp_path_factory) -> Collection:
    """A few hundred real summaries and bodies, of two packages that are installed anyway."""
    folder, site = tmp_path_factory.mktemp("site"), Path(sysconfig.get_path("purelib"))
    for name in ("accelerate", "peft"):
        shutil.copytree(site / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    whole = read_pydocs([folder])
    queries = sorted(whole.queries)[:200]
    return whole.select(queries, sorted({d for q in queries for d in whole.relevant(q)}))


def test_on_real_data_mined_negatives_are_hard_and_no_known_answer_is_among_them(real_base, docstrings):
    encoder = SmartEncoder(str(real_base), model=ModelBlock(document_tokens=32), device="cpu")
    assert len(docstrings.queries) == len(docstrings.corpus) == 200
    found = mine(docstrings, encoder, MiningOptions(k=4, mode="hybrid"), batch_size=64)
    documents = {name: row for row, name in enumerate(docstrings.corpus)}
    contents = [document.text for document in docstrings.corpus.values()]
    scores = encoder.score(list(docstrings.queries.values()), contents, "hybrid", batch_size=64)
    gaps, ratios = [], []
    for row, query in enumerate(docstrings.queries):
        mined = found.negatives[query]
        assert not set(mined.documents) & docstrings.relevant(query)
        answers = {docstrings.corpus[d].text for d in docstrings.relevant(query)}
        assert not {docstrings.corpus[d].text for d in mined.documents} & answers
        taken = scores[row, [documents[d] for d in mined.documents]]
        assert taken.tolist() == pytest.approx(mined.scores, abs=5e-3)
        ratios += [score / mined.positive for score in mined.scores]
        if mined.documents:
            gaps.append(float(taken.mean() - scores[row].mean()))  # the mean over all is that of a random draw
    assert found.counts["mined"] > 700 and max(ratios) < 0.95
    assert sum(gap > 0 for gap in gaps) > 0.97 * len(gaps) and sum(gaps) / len(gaps) > 0.1


@pytest.fixture
def run(tmp_path, capsys):
    """run(arguments ...) -> what ``smart-train mine`` prints."""

    def start(*arguments) -> str:
        parser = argparse.ArgumentParser()
        command.add(parser.add_subparsers())
        options = parser.parse_args(["mine", *map(str, arguments)])
        options.run(options)
        return capsys.readouterr().out

    return start


def test_the_command_adds_negatives_that_a_recipe_reads_and_that_train(run, tiny_bert, tmp_path):
    folder = tiny_data.write_beir(tmp_path / "beir")
    told = run(folder, "--model", tiny_bert, "-k", 3, "--max-relative", 0.99, "--range", 0, 12, "--rounds", 2)
    train, _, test = load(DataBlock(path=str(folder), negatives=2))
    assert train.negatives.keys() == train.queries.keys() and any(train.negatives.values())
    tested = {d for query in test.queries for d in test.relevant(query)}
    for query, row in train.negatives.items():
        assert len(row) <= 3 and not set(row) & (train.relevant(query) | tested)
    miner = next(iter(train.scored_negatives.values()))
    assert miner.miner.startswith(f"{Path(tiny_bert).name}, hybrid, 20") and len(miner.scores) == len(miner.documents)
    report = json.loads((folder / "mining" / "report.json").read_text())
    count = sum(map(len, train.negatives.values()))
    assert report["counts"]["mined"] == count == sum(report["ratios"]["mined"])
    assert report["options"]["max_relative"] == 0.99 and report["counts"]["held_out"] == 8
    with Image.open(folder / "mining" / "ratios.png") as picture:
        assert picture.width > 500
    assert not list((folder / "mining").glob("*.safetensors"))
    assert (
        f"{count} negatives of {len(train.queries)} queries" in told
        and "  rounds: 2" in told
        and f"path: {folder}" in told
    )
    encoder = SmartEncoder(str(tiny_bert), adapter=AdapterBlock(r=2), device="cpu")
    collate = Collator(train, encoder.preprocess, negatives=2)
    args = training_arguments(
        {"max_steps": 2, "use_cpu": True, "logging_steps": 1, "disable_tqdm": True}, tmp_path / "run"
    )
    trainer = SmartTrainer(
        encoder, args, Pairs(train), objective=ObjectiveBlock(), data_collator=collate, run_dir=tmp_path
    )
    trainer.train()
    assert [line["batch/negatives"] > 0 for line in trainer.state.log_history if "batch/negatives" in line] == [
        True
    ] * 2


def test_rows_of_pages_are_mined_into_a_folder_of_their_own(run, tiny_qwen3vl, page_rows, tmp_path):
    out = tmp_path / "out"
    arguments = (page_rows, "--model", tiny_qwen3vl, "--mode", "late", "--no-max-relative", "--out", out, "-k", 2)
    run(*arguments, "--test", 8, "--dev", 0)
    train, _, test = load(DataBlock(path=str(out), negatives=2, test=8, dev=0))
    assert all(len(train.negatives[query]) == 2 for query in train.queries)
    assert not {d for row in train.negatives.values() for d in row} & test.corpus.keys()
    before = dict(train.negatives)
    run(
        *arguments, "--test", 8, "--dev", 0, "--seed", 1, "--sampling", "random"
    )  # again, into the folder that is there
    train, _, _ = load(DataBlock(path=str(out), negatives=2, test=8, dev=0))
    assert train.negatives != before and train.negatives.keys() == before.keys()


def test_a_trained_adapter_mines_by_its_own_scores(run, tiny_bert, tmp_path):
    folder = tiny_data.write_beir(tmp_path / "beir")
    trained = SmartEncoder(
        str(tiny_bert), late=LateBlock(head="linear", dim=8, hybrid=HybridBlock(0.0, 1.0)), device="cpu"
    )
    torch.nn.init.normal_(next(iter(trained.head.parameters())))
    trained.save_pretrained(tmp_path / "adapter")
    run(folder, "--model", tiny_bert, "--adapter", tmp_path / "adapter", "-k", 2, "--no-max-relative")
    train, *_ = load(DataBlock(path=str(folder)))
    query, mined = next(iter(train.scored_negatives.items()))
    assert " + adapter, hybrid" in mined.miner and str(tmp_path) not in mined.miner  # it may go to the Hub
    scores = trained.score([train.queries[query]], [train.corpus[d].text for d in mined.documents], "late")[0]
    assert list(mined.scores) == pytest.approx(scores.tolist(), abs=5e-3)


def test_what_cannot_be_mined_is_refused_with_a_reason(run, tiny_bert, page_rows, beir_folder, tmp_path):

    with pytest.raises(DataError, match="range is 9 3"):
        run(beir_folder, "--model", tiny_bert, "--range", 9, 3)
    with pytest.raises(DataError, match="negatives cannot be added to it; .*pass out=FOLDER"):
        run(page_rows, "--model", tiny_bert)
    with pytest.raises(DataError, match="are images, such as .* has no image side"):
        run(page_rows, "--model", tiny_bert, "--out", tmp_path / "out")


def test_another_model_or_option_does_not_go_on_with_a_stopped_pass(tiny_bert, tmp_path, monkeypatch):
    folder = tiny_data.write_beir(tmp_path / "beir")
    keys = []

    def stop(*arguments, key, **options):
        keys.append(key)
        raise InterruptedError

    monkeypatch.setattr("smart_train.mining.folder.mine", stop)
    data = DataBlock(path=str(folder))
    encoder = SmartEncoder(str(tiny_bert), late=LateBlock(head="linear", dim=8), device="cpu")
    for change in ("nothing", "again", "options", "weights", "hybrid", "data"):
        if change == "weights":
            next(iter(encoder.head.parameters())).data.mul_(1.5)
        if change == "hybrid":
            encoder.late.hybrid.late = 3.0
        if change == "data":
            path = folder / "corpus.jsonl"
            path.write_text(path.read_text() + json.dumps({"_id": "new", "text": "a passage"}) + "\n")
        with pytest.raises(InterruptedError):
            mine_folder(data, encoder, MiningOptions(k=4) if change == "options" else MiningOptions())
    assert keys[0] == keys[1] and len(set(keys)) == 5 and len(keys) == 6


def test_ratios_are_counted_where_they_lie():
    ratios = Ratios()
    ratios.add(0.5, [0.49, 0.25, -0.1, 5.0], [0.25])
    ratios.add(2.0, [1.0], [1.0, 0.5])
    ratios.add(-0.2, [0.1], [0.1])
    assert ratios.candidates[39] == 1 and ratios.candidates[20] == 2 and ratios.candidates[0] == 1
    assert ratios.candidates[-1] == 1 and sum(ratios.candidates) == 5 and ratios.skipped == 1
    assert sorted(ratios.mined) == [0.25, 0.5, 0.5] and ratios.quantiles()["0.5"] == 0.5
    assert ratios.histogram()[20] == 2 and Ratios().quantiles() == {}
