"""A card tells what was read_facts, in metadata that the Hub's own client reads back, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import published
import pytest
import yaml
from fakehub_repo import faults
from huggingface_hub import ModelCard

from smart_train.publishing import card
from smart_train.publishing.card import CardFacts, duration, read_log, write_card
from smart_train.publishing.run_record import read_facts
from smart_train.publishing.upload_files import collect


@pytest.fixture(scope="module")
def told(finished_run) -> CardFacts:
    folder = finished_run / "adapter"
    return read_facts(collect(folder, finished_run), folder, folder, finished_run, "me/mine", "apache-2.0", "")


def about(text: str) -> dict:
    found: dict = yaml.safe_load(text.split("---\n")[1])
    return found


def of_the_hub(told: CardFacts, **settings) -> CardFacts:
    data = {"kind": "hub", "name": "me/pages", "revision": "v1", "subset": "en", "splits": {"test": {"queries": 3}}}
    figures = {**told.figures, "facts.json": {**told.figures["facts.json"], "data": data}}
    of_hub = {"base": "me/base", "commit": "c0ffee", "fingerprint": None, **settings}
    return replace(told, settings={**told.settings, **of_hub}, figures=figures, base_licence="mit")


def test_the_card_tells_measured_facts(told):
    text = write_card(told)
    assert "| trained | 0.500 [0.410, 0.590] | 0.500 [0.410, 0.590] | 0.500 [0.410, 0.590] |" in text
    assert "trained: 300 queries, 2000 documents, 0.071 MB of vectors a document (float16)." in text
    assert "| trained hybrid - base hybrid | +0.031 [+0.011, +0.050] | 0.002 |" in text
    assert "![loss and dev nDCG over steps](curve.png)" in text
    assert "| train | 1,500 | 800 | 40 | 1,600 | 4,800 |" in text
    assert "| test | 300 | 2,000 | 50 | 310 | 0 |" in text
    for row in ("| On | 2 x A CPU (4 cores) |", "| Engine | DDP |", "| Steps | 4, 2 epochs |"):
        assert row in text
    assert "| Time | 2 min 2 s, evaluations included, in 2 parts |" in text
    assert "| Memory | 1.5 GiB at the most, of one process |" in text
    assert "| Licence | apache-2.0; of the base: unknown: look at the base's own page |" in text


def test_loss_terms_of_ones_own_are_named_and_not_imported(told):
    objective = {key: value for key, value in told.recipe["objective"].items() if key != "late"}
    terms = ["mine:Term", {"type": "late", "weight": 0.5, "temperature": 0.02}, {"type": "their_term", "name": "push"}]
    text = write_card(replace(told, recipe={**told.recipe, "objective": {**objective, "terms": terms}}))
    assert "| Loss | softmax: pooled 1 (tau 0.05), mine:Term, late 0.5 (tau 0.02), push 1 |" in text


def test_a_head_of_ones_own_is_named_with_what_a_reader_has_to_trust(told):
    head = {"type": "mine:Head", "depth": 2}
    late = {**told.settings["late"], "head": head, "keep": ["no_punctuation", "mine:keep"]}
    text = write_card(of_the_hub(told, late=late))
    assert "head mine:Head, " in text and "depth" not in text
    assert "from_pretrained(\"me/mine\", trust_extensions=['mine:Head', 'mine:keep'])" in text
    assert "--trust-extension mine:Head --trust-extension mine:keep" in text
    assert "MultiVectorEncoder" not in text and "MultiVectorEncoder" in write_card(of_the_hub(told))


def test_trained_numbers_are_those_of_the_files(told, finished_run):
    from safetensors.torch import load_file

    paths = [finished_run / "adapter" / name for name in ("adapter_model.safetensors", "late_head.safetensors")]
    numbers = sum(tensor.numel() for path in paths for tensor in load_file(path).values())
    assert told.trained == numbers and f"| Trained numbers | {numbers:,} |" in write_card(told)


def test_nothing_private_is_in_it(told, finished_run, tmp_path_factory):
    text = write_card(told)
    assert "local:secret data" in text and "find: " not in text.split("## Use")[0]
    assert str(finished_run) not in text and str(tmp_path_factory.getbasetemp()) not in text


def test_the_metadata_place_it_where_the_hub_looks(told):
    found = about(write_card(of_the_hub(told)))
    assert found["library_name"] == "sentence-transformers" and found["pipeline_tag"] == "sentence-similarity"
    assert (found["base_model"], found["base_model_relation"]) == ("me/base", "adapter")
    assert found["datasets"] == ["me/pages"] and found["license"] == "apache-2.0"
    wanted = {"smart-train", "peft", "late-interaction", "multi-vector", "sentence-transformers", "feature-extraction"}
    assert wanted <= set(found["tags"])
    whole = of_the_hub(told, adapter={**told.settings["adapter"], "kind": "full"})
    assert (
        about(write_card(whole))["base_model_relation"] == "finetune" and "peft" not in about(write_card(whole))["tags"]
    )


def test_a_folder_is_no_model_and_no_dataset_of_the_hub(told):
    found = about(write_card(told))
    assert not {"base_model", "base_model_relation", "datasets"} & found.keys()
    assert "license" not in about(write_card(replace(told, licence=None)))
    assert "Licence | not stated; of the base" in write_card(replace(told, licence=None))


def test_pages_are_found_as_visual_document_retrieval(told):
    processing = {**told.settings["processing"], "pixels": {"longest_edge": 786432}}
    text = write_card(replace(told, settings={**told.settings, "processing": processing}))
    assert about(text)["pipeline_tag"] == "visual-document-retrieval"
    assert "MB of vectors a page" in text and "pathlib.Path of a page's image" in text


def test_the_model_index_holds_the_trained_row_with_intervals(told):
    (model,) = about(write_card(of_the_hub(told)))["model-index"]
    (result,) = model["results"]
    assert model["name"] == "mine" and result["task"]["type"] == "information-retrieval"
    dataset = {"type": "me/pages", "name": "me/pages", "config": "en", "split": "test", "revision": "v1"}
    assert result["dataset"] == dataset
    first = result["metrics"][0]
    assert (first["type"], first["value"], first["name"]) == ("ndcg_at_10", 0.5, "nDCG@10, pooled")
    assert first["args"] == {"mode": "pooled", "interval_95": [0.41, 0.59]}
    types = [metric["type"] for metric in result["metrics"]]
    assert types == ["ndcg_at_10", "ndcg_at_1", "recall_at_10", "mrr_at_10"] * 3  # and not recall@5


def test_the_hubs_client_reads_the_metadata_back(told):
    for one in (told, of_the_hub(told), replace(told, figures={}, log={}, recipe={}, licence=None)):
        text = write_card(one)
        assert faults(text) == []
        assert ModelCard(text).data.to_dict() == about(text)
    results = ModelCard(write_card(told)).data.eval_results
    assert len(results) == 12 and {result.metric_value for result in results} == {0.5, 0.3, 0.7, 0.4}


def test_an_adapter_without_a_run_claims_no_figures(finished_run):
    folder = finished_run / "adapter"
    text = write_card(read_facts(collect(folder, None), folder, folder, None, "me/mine", None, ""))
    assert "license" not in text and "nDCG" not in text
    assert not [name for name in ("Measured", "Data", "Training") if f"## {name}" in text]


def test_a_base_on_the_hub_is_named_with_its_commit(told):
    text = write_card(of_the_hub(told))
    assert "`me/base` at commit `c0ffee`" in text and "of the base: mit" in text
    assert 'SentenceTransformer("me/mine")' in text and 'from_pretrained("me/mine")' in text
    assert 'AutoModel.from_pretrained(base, revision="c0ffee")' in text


def test_differences_of_nothing_are_told_as_equal(told):
    text = write_card(replace(told, verified={**told.verified, "largest_pooled_difference": 0.0}))
    assert "pooled vectors equal, token vectors" in text


def test_the_log_of_a_run_that_was_gone_on_with_is_the_time_of_all_its_parts(tmp_path):
    found = read_log(published.LOG)
    assert found == {"step": 4, "seconds": 60.5 + 62.0, "parts": 2, "epoch": 2.0, "memory/gib": 1.5}
    assert read_log([]) == {}


def test_a_log_that_ends_by_half_is_read_and_one_that_is_broken_elsewhere_is_told(run_copy: Path):
    def read() -> dict:
        folder = run_copy / "adapter"
        return read_facts(collect(folder, run_copy), folder, folder, run_copy, "me/mine", None, "").log

    log = run_copy / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 5, "sec')
    assert read()["step"] == 4
    log.write_text('{"step": 5, "sec\n' + whole)
    with pytest.raises(ValueError, match=r"log\.jsonl, line 1 is not JSON"):
        read()


def test_durations_are_told_in_the_unit_that_fits():
    told = [duration(seconds) for seconds in (0.4, 42, 485, 3600 * 3 + 720, 3600 * 30)]
    assert told == ["0 s", "42 s", "8 min 5 s", "3 h 12 min", "30 h 0 min"]


def test_what_was_measured_by_an_older_version_is_told_as_far_as_it_goes(told):
    figures = {"metrics.json": json.loads(json.dumps(told.figures["metrics.json"]))}
    text = write_card(replace(told, figures=figures))
    assert "| trained | 0.500" in text and "MB of vectors" not in text and "paired difference" not in text


def test_an_encoder_that_was_never_trained_says_so(told):
    free = replace(told, settings={**told.settings, "adapter": None}, figures={}, log={}, recipe={}, trained=0)
    text = write_card(free)
    assert "| Trained | nothing: the base's hidden states, read as they are |" in text and "Trained numbers" not in text
    assert "they are the base's own" in text and "peft" not in text


def test_a_merge_of_several_has_its_own_row_in_the_model_index(told):
    rows = told.figures["metrics.json"]
    merged = replace(
        told, figures={"metrics.json": {"one": rows["base"], "two": rows["base"], "merged": rows["trained"]}}
    )
    assert len(ModelCard(write_card(merged)).data.eval_results) == 12
    assert "model-index" not in about(write_card(replace(told, figures={"metrics.json": {"base": rows["base"]}})))


def test_a_prompt_that_is_not_pooled_is_not_pooled_by_the_cards_program(told):
    settings = {**told.settings, "model": {**told.settings["model"], "document_prompt": "page: "}}
    whole, part = ({**(told.pooling or {}), "include_prompt": included} for included in (True, False))
    assert "mask.sum(1)" in write_card(replace(told, settings=settings, pooling=whole))
    assert "mask.sum(1)" not in write_card(replace(told, settings=settings, pooling=part))


def test_a_base_held_in_few_bits_is_told(told):
    model = {**told.settings["model"], "quantisation": "4bit"}
    text = write_card(replace(told, settings={**told.settings, "model": model}))
    assert "LoRA, r = 4, alpha = 32 and a head (linear), over a base held in 4bit |" in text
    # A program over the whole base would run, and give other vectors.
    assert "smart-train bitsandbytes`" in text and "on top of the whole base it has other vectors" in text
    assert "PeftModel" not in text and "load_adapter" not in text
    hosted = write_card(of_the_hub(told, model=model))
    assert 'SentenceTransformer("me/mine")' in hosted and "PeftModel" not in hosted


def test_figures_that_no_run_wrote_are_refused_by_their_row(run_copy):
    rows = json.loads((run_copy / "metrics.json").read_text())
    del rows["trained"]["late"]
    (run_copy / "metrics.json").write_text(json.dumps(rows))
    folder = run_copy / "adapter"
    with pytest.raises(ValueError, match=r"metrics\.json: the row trained has no late nDCG"):
        read_facts(collect(folder, run_copy), folder, folder, run_copy, "me/mine", None, "")


def test_several_adapters_in_one_are_counted(told):
    export = {"kind": "merge", "adapters": [{"source": "a"}, {"source": "b"}]}
    assert "r = 4, alpha = 32 and a head (linear); 2 adapters in one |" in write_card(
        replace(told, settings={**told.settings, "export": export})
    )


@pytest.mark.parametrize(("late", "said"), [(128.0, "largest"), (1 / 64, "smallest"), (2.0, None)])
def test_a_hybrid_weight_at_the_end_of_what_calibration_tries_is_said(late, said):
    line = card._hybrid({"pooled": 1.0, "late": late})
    assert (f"is the {said} that calibration tries" in line) == (said is not None)
    assert ("calibration" in line) == (said is not None)
