"""Read the cells of a table of rows: texts, passages, chat messages, ids and labels, as published sets have them.

Passages are objects with ``text`` (or ``contents``) and maybe ``title``, as DPR and Tevatron write them.  Chat messages
are ``{"role": ..., "content": ...}`` (OpenAI, ms-swift) or ``{"from": ..., "value": ...}`` (ShareGPT).
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from smart_train.core.errors import DataError, Setting
from smart_train.core.modality import text_fault
from smart_train.data.tables import id_text

PASSAGE_TEXTS = ("text", "contents", "content", "passage")
USERS, ANSWERERS = ("user", "human"), ("assistant", "gpt")
MOST_GRADE = 10  # scales of relevance are shorter; higher whole numbers are votes, ranks or similarities


def is_empty(value: Any) -> bool:
    """Return whether a cell holds nothing: null, NaN (as pandas writes null) or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def cell_items(value: Any, name: str, where: str) -> list[str]:
    """Return the texts of a cell, "" for each that is empty.

    A cell is empty, a text, a passage, a conversation, or a list of these.  Raises DataError, naming the column, for
    anything else, and for a text that no tokenizer can read.
    """
    if isinstance(value, str):  # nearly all cells, of which a table has millions
        if fault := text_fault(value):
            raise DataError(f"{where}: {name} has {fault}; remove it")
        return [value.strip()]
    if _is_message(value) or _is_conversation(value):
        return [said(value, name, where)]
    values = value if isinstance(value, list | tuple) else [value]
    found: list[str] = []
    for place, one in enumerate(values, 1):
        at = f" (value {place} of {len(values)})" if len(values) > 1 else ""
        if _is_message(one) or _is_conversation(one):
            one = said(one, f"{name}{at}", where)
        elif isinstance(one, dict) and any(isinstance(one.get(key), str) for key in PASSAGE_TEXTS):
            body = next(one[key] for key in PASSAGE_TEXTS if isinstance(one.get(key), str))
            title = one.get("title")
            one = " ".join(part.strip() for part in (title, body) if isinstance(part, str) and part.strip())
        elif is_empty(one):
            one = ""
        if not isinstance(one, str):
            raise DataError(f"{where}: {name} holds {type(one).__name__}{at}; it must be a text or a list of texts")
        if fault := text_fault(one):
            raise DataError(f"{where}: {name}{at} has {fault}; remove it")
        found.append(one.strip())
    return found


def cell_texts(value: Any, name: str, where: str) -> list[str]:
    """Return the texts of a cell; see ``cell_items``."""
    return [text for text in cell_items(value, name, where) if text]


def cell_ids(value: Any, name: str, where: str) -> list[str]:
    """Return the ids of a cell, which is empty, an id or a list of ids.  Raises DataError for what is no id."""
    found: list[str] = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if is_empty(one):
            continue
        named = (
            next((one[key] for key in ("docid", "passage_id", "psg_id", "id", "_id") if key in one), None)
            if isinstance(one, dict)
            else one
        )
        key = id_text(named)
        if key is None or text_fault(key):
            raise DataError(f"{where}: {name} holds {str(one)[:40]!r}; an id is a text or a whole number")
        found.append(key)
    return found


# Chat rows ------------------------------------------------------------------------------------------------------------


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_message, value))


def turns(value: Any, name: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield (role, text) of the messages of a conversation; user and assistant under these names."""
    for message in [value] if isinstance(value, dict) else value:
        role = str(message.get("role", message.get("from"))).lower()
        content = message.get("content", message.get("value"))
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = " ".join(part["text"] for part in content)
        if not isinstance(content, str) or re.search(r"<(image|video|audio)>", content):
            what = f"{name} has a message of {role} that is not text alone"
            raise DataError(f"{where}: {what}; write pages as rows with the columns query and image")
        if fault := text_fault(content):
            raise DataError(f"{where}: {name} has {fault}; remove it")
        yield "user" if role in USERS else "assistant" if role in ANSWERERS else role, content.strip()


def said(value: Any, name: str, where: str) -> str:
    """Return the text of a conversation of one message, beside the system's."""
    texts = [text for role, text in turns(value, name, where) if role != "system" and text]
    if len(texts) > 1:
        what = f"{name} is a conversation of {len(texts)} messages, and it is not clear which is the text"
        raise DataError(f"{where}: {what}; leave one")
    return texts[0] if texts else ""


def question(value: Any, name: str, where: str, answered: bool) -> tuple[list[str], list[str], bool]:
    """Return (queries, answers, whether there is a system message) of a conversation that asks for documents.

    answered: the answer is the document; else there must be none
    Raises DataError for several questions, since the later ones are no queries without what came before.
    """
    if not (_is_message(value) or _is_conversation(value)):
        return cell_texts(value, name, where), [], False
    found: dict[str, list[str]] = {"user": [], "assistant": [], "system": []}
    for role, text in turns(value, name, where):
        if role not in found:
            raise DataError(f"{where}: {name} has a message of {role!r}; it must be of system, user or assistant")
        if text:
            found[role].append(text)
    asked, answers = found["user"], found["assistant"]
    if len(asked) > 1 or len(answers) > answered:
        most = "one question and one answer" if answered else "one message of the user"
        what = f"{name} has {len(asked)} messages of the user and {len(answers)} of the assistant"
        raise DataError(f"{where}: {what}; a row has {most}")
    return asked, answers, bool(found["system"])


# Labels ---------------------------------------------------------------------------------------------------------------


def read_grades(value: Any, filled: list[bool], name: str, where: str) -> list[int | None]:
    """Return the grade of each of a row's documents, None where it is not given: 0 = a negative, above 0 = relevant.

    value: one label for all, or a list of one for each document, the empty ones counted or not (``filled``)
    Raises DataError for what is no grade: a similarity such as 0.73, a class such as "neutral", a number below 0.
    """
    if not isinstance(value, list | tuple):
        return [read_grade(value, name, where)] * sum(filled)
    if len(value) == len(filled):
        return [read_grade(one, name, where) for one, there in zip(value, filled, strict=True) if there]
    if len(value) != sum(filled):
        what = f"{name} has {len(value)} labels, and the row has {sum(filled)} documents"
        raise DataError(f"{where}: {what}; give one label for each, or one for all")
    return [read_grade(one, name, where) for one in value]


def read_grade(value: Any, name: str, where: str) -> int | None:
    """Return one label as a grade; see ``read_grades``."""
    if is_empty(value):
        return None
    ignore = (Setting("data.label", '""'), " to take every row for a positive")
    number = {"true": 1.0, "false": 0.0}.get(value.strip().lower()) if isinstance(value, str) else None
    try:
        number = float(value) if number is None else number
    except (TypeError, ValueError, OverflowError):
        what = f"{where}: {name} is {str(value)[:40]!r}, which is no label; write 1 (relevant) or 0 (a negative), or "
        raise DataError(what, *ignore) from None
    if not number.is_integer() and 0 <= number <= MOST_GRADE:
        what = f"{where}: {name} is {value}, a degree of similarity, and a label is a whole number: 0 = a negative of "
        what += "the query, 1 and above = relevant; write such labels, "
        learn = (Setting("data.scores", name), " to learn it as a teacher's score")
        raise DataError(what, *learn, ", or ", *ignore)
    if not 0 <= number <= MOST_GRADE:
        what = f"{where}: {name} is {value}; a label is a whole number from 0 (a negative) to {MOST_GRADE}"
        what += "; correct it, or "
        raise DataError(what, *ignore)
    return int(number)


# Lists as text --------------------------------------------------------------------------------------------------------


def printed_list(text: Any, name: str, where: str) -> list[Any] | None:
    """Return the list that a cell of a CSV file holds as text, in JSON or as Python prints it; None where it is none.

    Raises DataError for a list as numpy prints it: without commas, Python would read its texts as one.

    >>> printed_list("['a', 'b']", "negatives", "t.csv:2"), printed_list("[sic]", "negatives", "t.csv:2")
    (['a', 'b'], None)
    """
    if not isinstance(text, str) or not (text.strip().startswith("[") and text.strip().endswith("]")):
        return None
    text = text.strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return None
        if _joined(text):
            what = f"{name} is a list as numpy prints it, without commas: {text[:60]}"
            raise DataError(f"{where}: {what}; convert it with tolist() before it is written") from None
    return found if isinstance(found, list) else None


def _joined(text: str) -> bool:
    """Return whether two strings stand side by side, which Python takes for one."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    kinds = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT)]
    return any(a == b == tokenize.STRING for a, b in pairwise(kinds))
