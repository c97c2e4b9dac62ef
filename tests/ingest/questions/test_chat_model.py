"""Chat models of other packages, named by their path."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_models import page

from smart_train.core.errors import ExtensionError
from smart_train.ingest.questions.chat_model import load_chat_model
from smart_train.ingest.questions.vlm import VlmOptions, vlm

MODULE = """
from smart_train.ingest.questions.chat_model import Answer


class Parrot:
    name, batch_size = "parrot", 2

    def answer(self, requests):
        rows = '{"queries": [{"kind": "fact", "query": "barrels that ferry number %s carries"}]}'
        return [Answer(rows % request.prompt.split()[-2]) for request in requests]


class Mute:
    name = "mute"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_chat_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_class_with_the_three_members_writes_questions(package, tmp_path):
    model = load_chat_model("their_chat_models:Parrot")
    written = vlm([page(1), page(2)], model, tmp_path, VlmOptions(check=False))
    assert [question.text for question in written.questions] == [
        "barrels that ferry number 1 carries",
        "barrels that ferry number 2 carries",
    ]


def test_a_class_without_them_and_a_path_that_leads_nowhere_are_refused(package):
    with pytest.raises(ExtensionError, match="'their_chat_models:Mute' has no batch_size, answer"):
        load_chat_model("their_chat_models:Mute")
    with pytest.raises(ExtensionError, match="no_such_package:Model.* cannot be imported"):
        load_chat_model("no_such_package:Model")
