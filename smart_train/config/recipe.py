"""Read recipes from YAML, apply overrides, and save a resolved recipe with its run."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from smart_train.config.schema import Component, ObjectiveBlock, Recipe, Where
from smart_train.config.typed_values import Problem, RecipeError, build, describe_value
from smart_train.core.bounded_yaml import BoundedLoader, load_yaml

__all__ = ["BOOT", "CLOSE", "Problem", "RecipeError", "of_words", "plain", "read", "save", "stored"]

QUOTES = '"' * 3
BOOT = f"from smart_train.recipe import boot; boot(__file__, __name__); r{QUOTES}"
CLOSE = f"# {QUOTES}"
PACKAGES = ["smart-train", "torch", "transformers", "sentence-transformers", "peft", "accelerate", "deepspeed"]
PACKAGES += ["datasets", "tokenizers", "safetensors", "numpy", "pillow", "late-interaction-kernels"]


def read(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key=value`` overrides; their values are YAML: ``late.layer=[1,2]``.

    Raises RecipeError: no such file, not YAML, unknown or repeated keys, wrong types.  ``checks.recipe.check`` checks
    whether the values fit the model, the data and each other.
    """
    where = Where(str(path))
    return _made(_parse(_text(Path(path).expanduser(), where), where), overrides, where)


def of_words(values: dict[str, Any], overrides: Sequence[str]) -> Recipe:
    """Return the recipe of plain values and ``key=value`` overrides; raises as ``read``."""
    return _made(values, overrides, Where("command line"))


def _made(values: dict[str, Any], overrides: Sequence[str], where: Where) -> Recipe:
    from smart_train.config.training_arguments import MOVED, hints

    for override in overrides:
        _override(override, values, where)
    return build(values, hints(), MOVED, where)


def stored(path: str | Path) -> dict[str, Any]:
    """Return what ``save`` wrote, as nested dicts; unlike ``read``, it checks no key and loads no other package.

    Raises RecipeError for a file that is not YAML, or no block of keys.
    """
    where = Where(str(path))
    try:
        found = load_yaml(Path(path).read_text(encoding="utf8"))
    except UnicodeDecodeError as error:
        raise _fail(where, None, "", f"it is not UTF-8 text ({error.reason})", "restore what the run wrote") from None
    except yaml.YAMLError as error:
        raise _fail(where, *_problem(error), "restore what the run wrote") from None
    if not isinstance(found, dict):
        raise _fail(where, None, "", "a recipe is a block of keys", "restore what the run wrote")
    return found


def plain(block: Any) -> dict[str, Any]:
    """Return a recipe or one of its blocks as nested dicts and lists, defaults included; ``read`` accepts them."""
    values: dict[str, Any] = _plain_value(block)
    return values


def _plain_value(value: Any) -> Any:
    if isinstance(value, Component):
        return value.plain()
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
        for entry in value.terms if isinstance(value, ObjectiveBlock) else ():
            fields.pop(entry.type, None)  # a term of objective.terms takes the place of its block
        return fields
    if isinstance(value, dict):
        return {name: _plain_value(item) for name, item in value.items()}
    return [_plain_value(item) for item in value] if isinstance(value, list) else value


def save(recipe: Recipe, folder: str | Path, fingerprints: dict[str, str] | None = None) -> Path:
    """Write the resolved recipe and the versions it ran with: FOLDER/recipe.yaml, FOLDER/versions.json.

    fingerprints: split -> fingerprint of its data.  ``read`` of the written file gives an equal recipe.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# {recipe.where.file}, resolved: every key as it was used, defaults and overrides included.\n"
    text = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, width=110)
    (folder / "recipe.yaml").write_text(head + text, encoding="utf8")
    facts = {"python": platform.python_version(), "platform": platform.platform(), "packages": versions()}
    if fingerprints is not None:
        facts["data"] = fingerprints
    (folder / "versions.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf8")
    return folder / "recipe.yaml"


def block(name: str, values: dict[str, Any], head: str = "") -> str:
    """Return one block of a recipe as YAML, to read by itself or to copy into one. head: comment before it"""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines())
    return comment + yaml.safe_dump({name: values}, sort_keys=False, allow_unicode=True, width=110)


def versions() -> dict[str, str]:
    """Return package -> installed version, for packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# Reading -------------------------------------------------------------------------------------------------------------


class _Loader(BoundedLoader):
    """BoundedLoader with YAML 1.2's booleans (no, off and on are text) and numbers (1e-4 is a number)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in pairs if tag != "tag:yaml.org,2002:bool"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _fail(where: Where, line: int | None, key: str, what: str, fix: str) -> RecipeError:
    place = where.file if line is None else f"{where.file}, line {line}"
    return RecipeError([Problem(key, what, fix, place)], where)


def _problem(error: yaml.YAMLError) -> tuple[int | None, str, str]:
    """Return line, key ("") and message of an error of PyYAML."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return None, "", f"this is not YAML: {error}"
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else None, "", f"this is not YAML: {error.problem or error.context}"


def _text(path: Path, where: Where) -> str:
    """Return the file's text; raises RecipeError if it starts with a boot line and is not both YAML and Python."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _fail(
            where, None, "", "there is no such file", "correct the path, or make one: smart-train new NAME"
        ) from None
    except UnicodeDecodeError as error:
        raise _fail(where, None, "", f"it is not UTF-8 text ({error.reason})", "save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: no name of a file at all
        reason = getattr(error, "strerror", None) or error
        raise _fail(where, None, "", f"it cannot be read ({reason})", "name a YAML file") from None
    lines = text.splitlines()
    if not lines or not re.match(r"(from|import)\s+smart_train", lines[0]):
        return text
    if lines[0].rstrip() != BOOT:
        raise _fail(where, 1, "", "the first line is not the boot line", f"write exactly: {BOOT}")
    last = max(number for number, line in enumerate(lines, 1) if line.strip())
    for number, line in enumerate(lines[1:], 2):
        if QUOTES in line and number != last:
            fix = "write '' or \" there; only the last line may have it"
            raise _fail(where, number, "", f"{QUOTES} ends the recipe for Python here, before its last line", fix)
    if lines[last - 1].rstrip() != CLOSE:
        raise _fail(
            where, last, "", "the last line does not close the string that the first one opens", f"add: {CLOSE}"
        )
    if next((line for line in lines[1:] if line.strip()), "").rstrip() != "---":
        raise _fail(where, 2, "", "the line --- is missing after the boot line", "add it as line 2")
    return text


def _parse(text: str, where: Where) -> dict[str, Any]:
    """Return nested plain values; ``where`` gets the line of every key."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:  # a zero byte, for one
        number = text.count("\n", 0, error.position) + 1
        what = f"this is not YAML: the character {error.character!r} is not allowed"
        raise _fail(where, number, "", what, "remove it") from None
    try:
        documents: list[yaml.Node] = []
        while loader.check_node() and (node := loader.get_node()) is not None:
            documents.append(node)
        booted = text.lstrip("\ufeff").startswith(BOOT)
        bodies = documents[1:] if booted else documents
        if len(bodies) > 1:
            line = bodies[1].start_mark.line + 1
            raise _fail(where, line, "", "a second YAML document starts before here", "remove the extra --- line")
        if not bodies or (isinstance(bodies[0], yaml.ScalarNode) and not bodies[0].value):
            raise _fail(where, None, "", "the recipe is empty", "make a commented one: smart-train new NAME")
        if not isinstance(bodies[0], yaml.MappingNode):
            line = bodies[0].start_mark.line + 1
            raise _fail(where, line, "", "a recipe is a block of keys", "write key: value lines, such as model:")
        return _values(loader, bodies[0], "", where, where.lines)
    except yaml.YAMLError as error:
        line, key, what = _problem(error)
        fix = "indent with spaces" if "\\t" in what else "correct the line; text with ': ' or ' #' needs quotes"
        if not isinstance(error, yaml.MarkedYAMLError):
            fix = "remove the characters named"
        raise _fail(where, line, key, what, fix) from None
    finally:
        loader.dispose()


def _values(loader: _Loader, node: yaml.Node, key: str, where: Where, lines: dict[str, Any], around: tuple = ()) -> Any:
    """Return a node's plain value; fill ``lines``; raises RecipeError for a repeated key or one that is not text."""
    if id(node) in around:
        raise _fail(where, node.start_mark.line + 1, key, "an alias contains itself", "write the values out")
    if isinstance(node, yaml.CollectionNode) and node.tag not in ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
        mark = node.start_mark
        raise yaml.constructor.ConstructorError(
            None, None, f"could not determine a constructor for the tag {node.tag!r}", mark
        )
    if isinstance(node, yaml.SequenceNode):
        inside = (*around, id(node))
        lines.update({f"{key}.{n}": item.start_mark.line + 1 for n, item in enumerate(node.value)})
        return [_values(loader, item, f"{key}.{n}", where, lines, inside) for n, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        value = loader.construct_object(node, deep=True)
        if isinstance(value, str) and (bad := re.search("[\\0\ud800-\udfff]", value)):
            what = f"the text holds {bad.group()!a}, which no file name and no UTF-8 text can"
            raise _fail(where, node.start_mark.line + 1, key, what, "remove that character")
        if isinstance(value, int) and value.bit_length() > 64:
            what = f"{node.value[:20]}... has {len(node.value)} digits"
            raise _fail(where, node.start_mark.line + 1, key, what, "write a number below 2^64")
        return value
    found: dict[str, Any] = {}
    first: dict[str, int] = {}
    for name_node, value_node in node.value:
        line, name = name_node.start_mark.line + 1, name_node.value
        if not isinstance(name_node, yaml.ScalarNode) or name_node.tag != "tag:yaml.org,2002:str":
            raise _fail(where, line, key, f"a key must be text, got {name!r}", "write the key as a word")
        inner = f"{key}.{name}" if key else name
        if name in found:
            what = f"the key is given twice, first in line {first[name]}"
            raise _fail(where, line, inner, what, "remove one of the two")
        first[name] = lines[inner] = line
        found[name] = _values(loader, value_node, inner, where, lines, (*around, id(node)))
    return found


def _override(override: str, values: dict[str, Any], where: Where) -> None:
    """Put ``key=value`` into ``values``; the key's line becomes "command line"."""
    key, equals, text = override.partition("=")
    if not equals or key.startswith("-") or not all(key.split(".")):
        what = f"{override!r} is not key=value"
        fix = f"write {override.lstrip('-') if equals else (key.lstrip('-') or 'training.max_steps') + '=VALUE'}"
        raise RecipeError([Problem("", what, fix, "command line")], where)
    shown = Where("command line")
    try:
        node = yaml.compose(text, Loader=_Loader)
        value = None if node is None else _values(_Loader(""), node, key, shown, {})
    except yaml.YAMLError as error:
        text = text if len(text) <= 80 else f"{text[:80]}..."
        what = f"{text!r} is not YAML ({getattr(error, 'problem', None) or error})"
        raise RecipeError([Problem(key, what, f"quote it twice: {key}='\"{text}\"'", "command line")], where) from None
    block = values
    *outer, last = key.split(".")
    for depth, name in enumerate(outer, 1):
        path = ".".join(outer[:depth])
        inner = block.get(name)
        if inner is None:
            inner = block[name] = {}
            where.lines.setdefault(path, None)
        if not isinstance(inner, dict):
            problem = Problem(
                key, f"{path} is no block, it is {describe_value(inner)}", f"write {path}=VALUE", "command line"
            )
            raise RecipeError([problem], where)
        block = inner
    block[last] = value
    for old in [k for k in where.lines if k == key or k.startswith(f"{key}.")]:
        del where.lines[old]
    where.lines[key] = None
