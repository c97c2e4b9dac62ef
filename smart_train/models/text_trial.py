"""Tokenize and render a few texts with the files of a download: run by ``child_process.ask``, under its limits.

A tokenizer's rules can multiply a text or search it without end, and a chat template can loop; neither shows in the
file.  This file must import nothing of this package, and only the two libraries that run such files (0.2 s).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

LENGTHS = (1, 30, 2000)  # of one character: 30 takes forever where a search is exponential, 2,000 where it is cubic
TOKENS, CHARACTERS = 64, 100_000  # that may be added to any text: start and end, a system prompt
GROWTH = 16  # times as many tokens or characters as a text has bytes
FAMILIES = "aA0 .,-_'\n\té中"  # what the rules of usual tokenizers tell apart


def answer(request: dict[str, Any]) -> str | None:
    """Return what is wrong, or None.

    request: {"tokenizers": contents of tokenizer.json files, "templates": chat templates}, each name -> text
    The name of what is being tried is the last line on standard error.
    """
    for name, text in request["tokenizers"].items():
        print(name, file=sys.stderr, flush=True)
        wrong = _tokenize(text)
        if wrong is not None:
            return f"{name} {wrong}"
    for name, text in request["templates"].items():
        print(name, file=sys.stderr, flush=True)
        wrong = _render(text)
        if wrong is not None:
            return f"{name} {wrong}"
    return None


def _tokenize(content: str) -> str | None:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception:  # transformers says what is wrong with it
        return None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in _probes(json.loads(content)):
        size = len(text.encode())
        try:
            count = len(tokenizer.encode(text).ids)
        except MemoryError:
            raise
        except Exception:  # a character that it has no token for
            continue
        if count > TOKENS + GROWTH * size:
            return f"makes {count:,} tokens of {size:,} bytes"
    return None


def _probes(settings: dict[str, Any]) -> Iterator[str]:
    """Yield runs of the usual characters, and of those that the rules of this tokenizer name."""
    rules = [settings.get(part) for part in ("normalizer", "pre_tokenizer", "post_processor")]
    named = list(dict.fromkeys(_strings(rules)))[:200]
    letters = dict.fromkeys(FAMILIES + "".join(named))
    yield "The invoice, with its total amount due: 1,234.50 (net)!\n\n  Wie hoch war's im Jahr 2024?"
    for length in LENGTHS:
        for letter in list(letters)[:300]:
            yield letter * length
            yield letter * length + "!"
        for text in named:
            yield (text + " ") * max(1, length // (len(text) + 1))
        yield ("aA0 .," * length)[: 2 * length]


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content[:100]
    elif isinstance(content, dict):
        for key, value in content.items():
            if key not in ("type", "precompiled_charsmap"):
                yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)


def _render(template: str) -> str | None:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag {% generation %} of transformers' templates: its body, as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Refused(Exception):
        pass

    def refuse(message: str) -> None:
        raise Refused(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_options: json.dumps(value, ensure_ascii=False)
    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: "2026-01-01")
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateError:  # transformers says what is wrong with it, where it is used
        return None
    tokens = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")}
    for text in ("", "a text", "word " * 400):
        for content in (text, [{"type": "text", "text": text}]):
            asked = {"role": "user", "content": content}
            for messages in (
                [asked],
                [{**asked, "role": "system"}, asked],
                [asked, {**asked, "role": "assistant"}, asked],
            ):
                size, given = 0, len(messages) * len(text)
                options: dict[str, Any] = {"messages": messages, "add_generation_prompt": True, "tools": None}
                try:
                    for piece in compiled.generate(**options, documents=None, **tokens):
                        size += len(piece)
                        if size > CHARACTERS + GROWTH * given:
                            return f"makes more than {size:,} characters of {given:,}"
                except MemoryError:
                    raise
                except Exception:  # such as a template that takes no system message
                    continue
    return None
