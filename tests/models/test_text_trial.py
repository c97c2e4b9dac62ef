"""What no look at a file shows is tried before a base or an adapter is loaded: a tokenizer that multiplies a text or
searches it without end, a chat template that loops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from adapters import trained

from smart_train.config.schema import AdapterBlock
from smart_train.core.errors import AdapterError, BaseNotFound
from smart_train.models import base_loading, safe_loading
from smart_train.models.base_config import read_base
from smart_train.models.encoder import SmartEncoder

LOOP = "{% for a in range(99999) %}"
ENDLESS = 3 * LOOP + 3 * "{% endfor %}"
LONG = "{% for a in range(99999) %}{% for b in range(99999) %}looped{% endfor %}{% endfor %}"
GROWING = (
    "{% set ns = namespace(x='aaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
)


def rule(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def several(*rules: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(rules)}


def changed(**parts):
    def spoil(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))

    return spoil


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def template(name: str, text: str):
    def spoil(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".jinja"):
            path.write_text(text)
        else:
            content = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps({**content, "chat_template": text}))

    return spoil


HOSTILE = {
    "a rule that doubles, sixty times": changed(normalizer=several(*[rule({"String": "a"}, "aa")] * 60)),
    "a rule for one rare letter": changed(normalizer=several(*[rule({"String": "ø"}, "øø")] * 60)),
    "a rule by an expression": changed(normalizer=several(*[rule({"Regex": "[a-z]"}, "bcdef")] * 20)),
    "one letter becomes a book": changed(normalizer=rule({"String": "e"}, "chart " * 20_000)),
    "text put before every text": changed(normalizer={"type": "Prepend", "prepend": "violin " * 200_000}),
    "a split that searches without end": changed(pre_tokenizer=split(r"(?=((a+)+)+)((a+)+)+\2\2\2!!x")),
    "a template of nested loops": template("chat_template.jinja", ENDLESS),
    "a template without an end": template("chat_template.jinja", LONG),
    "a template that grows": template("tokenizer_config.json", GROWING),
    "a template in the processor's file": template("processor_config.json", LONG),
    "another template beside the usual one": template("additional_chat_templates/tools.jinja", LONG),
    "a template for some messages": template(
        "chat_template.jinja", "{% if messages[0].role == 'system' %}" + LONG + "{% endif %}{{ messages[0].content }}"
    ),
}


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(safe_loading, "TRIAL_SECONDS", 1.0)
    monkeypatch.setattr(safe_loading, "TRIAL_MEMORY", 2 << 30)
    monkeypatch.setattr(base_loading, "SentenceTransformer", None)  # nothing is loaded


LIMITS = "could not be tried on short texts within 1 s and 2 GiB"
MESSAGE = rf"(makes .* tokens of|makes more than .* characters of|{LIMITS})"


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_base_whose_texts_never_end_is_refused_before_it_is_loaded(kind, tiny_bert, tmp_path, soon):
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    HOSTILE[kind](base)
    for read in (read_base, SmartEncoder, SmartEncoder.from_pretrained):  # tried once
        with pytest.raises(BaseNotFound, match=MESSAGE):
            read(str(base))


@pytest.fixture(scope="module")
def saved(tiny_bert, tmp_path_factory) -> Path:
    return trained(tiny_bert, AdapterBlock(r=2)).save_pretrained(tmp_path_factory.mktemp("saved") / "adapter")


@pytest.mark.parametrize("kind", [*HOSTILE][::2])
def test_an_adapter_whose_texts_never_end_is_refused_before_its_base_is_loaded(kind, saved, tmp_path, soon):
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    HOSTILE[kind](folder)
    with pytest.raises(AdapterError, match=MESSAGE):
        SmartEncoder.from_pretrained(folder)


USUAL = {
    "a template that refuses a system message": template(
        "chat_template.jinja", "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}text"
    ),
    "a template with a generation block": template(
        "chat_template.jinja", "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "a long system prompt": template("chat_template.jinja", "{{ 'be kind. ' * 2000 }}{{ messages[0].content }}"),
    "several templates": template(
        "tokenizer_config.json",
        [{"name": "default", "template": "{{ messages }}"}, {"name": "tools", "template": "{{ tools | tojson }}"}],
    ),
    "fixed padding": changed(
        padding={
            "strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        }
    ),
    "bytes": changed(
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    ),
    "unicode forms": changed(normalizer=several({"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"})),
}  # fmt: skip


@pytest.mark.parametrize("kind", USUAL)
def test_what_usual_models_do_is_let_be(kind, tiny_bert, tmp_path):
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    USUAL[kind](base)
    assert read_base(str(base)).hidden == 32


def test_equal_contents_are_tried_once(tiny_bert, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(safe_loading.child_process, "ask", lambda *words: asked.append(words))
    safe_loading._tried.cache_clear()
    for name in ("one", "two", "three"):
        safe_loading.check_base_folder(Path(shutil.copytree(tiny_bert, tmp_path / name)))
    assert len(asked) == 1
    safe_loading._tried.cache_clear()
