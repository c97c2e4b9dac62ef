"""Every road to the Hub against a server that accepts connections and never answers; prints a JSON line for each road.

A script of its own: huggingface_hub reads its settings when it is imported.  Time limits are shortened, waits between
retries are left out.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any


def serve() -> str:
    """Accept connections, and hold them; return the address."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    held = []

    def accept() -> None:
        while True:
            held.append(server.accept())

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def main(folder: Path, adapter: Path) -> None:
    from huggingface_hub.utils import _http

    from smart_train.config.schema import DataBlock
    from smart_train.core import hub
    from smart_train.data.hub_transfer import pull, push
    from smart_train.data.load import read_all
    from smart_train.data.readers.hub_datasets import named_by_key
    from smart_train.models.base_config import read_base
    from smart_train.models.encoder import SmartEncoder
    from smart_train.publishing.upload import Target, upload

    hub.SILENCE, sleep = 0.3, time.sleep
    _http.time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    (folder / "pairs.jsonl").write_text('{"query": "a", "positive": "b"}\n' * 3)

    def dataset() -> None:
        with named_by_key(data := DataBlock(path="me/data")):
            read_all(data)

    roads: dict[str, Any] = {
        "a base's files": lambda: read_base("me/base"),
        "a base": lambda: SmartEncoder("me/base", device="cpu"),
        "an adapter": lambda: SmartEncoder.from_pretrained("me/adapter", device="cpu"),
        "a dataset": dataset,
        "data pull": lambda: pull("me/data", folder / "pulled"),
        "data push": lambda: push(folder / "pairs.jsonl", "me/data"),
        "publish": lambda: upload({"README.md": b"a card"}, Target("me/adapter"), adapter),
    }
    for name, road in roads.items():
        begun = time.monotonic()
        hub.check_answers.cache_clear()
        try:
            road()
            told = ("", "no error", 0)
        except Exception as error:
            told = (type(error).__name__, str(error), getattr(error, "status", -1))
        print(json.dumps([name, *told, time.monotonic() - begun]), flush=True)


if __name__ == "__main__":
    address = serve()
    home = Path(sys.argv[1])
    os.environ.update(
        HF_ENDPOINT=address,
        HF_HOME=str(home / "hf"),
        HF_TOKEN="hf_of_me",
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DOWNLOAD_TIMEOUT="1",
        HF_HUB_ETAG_TIMEOUT="1",
    )
    main(home, home / "adapter")
