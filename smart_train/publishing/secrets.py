"""Search the files to publish for secrets: tokens, keys, passwords, and paths of this machine.

Our own patterns come first; what they miss is left to the detectors of detect-secrets (Yelp), those of one issuer each.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from smart_train.core.errors import PublishError

Files = dict[str, Path | bytes]
"""Path in the repository -> local file, or its content where that was changed."""

VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")  # words, some of which look like paths
BINARY = (".safetensors", ".model", ".png")
HEADER = 100 << 20  # bytes; safetensors itself reads no longer one
SHOWN = 8  # findings in one message

SECRETS: dict[str, str] = {  # what it is -> how it looks
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "an OpenAI-like key": r"\bsk-[\w-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Slack token": r"\bxox[abeprs]-[\w-]{10,}|hooks\.slack\.com/services/\w+/\w+/\w+",
    "a Google key": r"\bAIza[\w-]{35}",
    "a Stripe key": r"\b[rs]k_live_\w{16,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{30,}",
    "a Slack app token": r"\bxapp-\d-[\w-]{10,}",
    "a Google OAuth secret": r"\b(?:GOCSPX-[\w-]{20,}|ya29\.[\w-]{20,})",
    "an issuer's token": (
        r"\b(?:dop_v1_|doo_v1_|dckr_pat_|shp(?:at|ca|pa|ss)_|dapi(?=[0-9a-f]{32})|r8_|gsk_|pplx-|xai-|nvapi-|glsa_|glc_"
        r"|hv[sbr]\.|lin_api_|ntn_|lsv2_(?:pt|sk)_|pcsk_|dp\.(?:pt|st|ct)\.|sntry[su]_|ATATT3|PMAK-|pscale_(?:pw|tkn)_"
        r"|sbp_|nfp_|HRKU-|rubygems_|NRAK-|dt0c01\.|figd_|wandb_v1_|AGE-SECRET-KEY-1|pypi-AgE|SG\.|key-(?=[0-9a-f]"
        r"{32})|whsec_|[rs]k_test_|sq0(?:atp|csp)-|gl(?:rt|dt|ptt|soat)-)[\w.-]{16,}"
    ),
    "an Azure key": r"\bAccountKey=[A-Za-z0-9+/]{40,}={0,2}|\bSharedAccessKey=[A-Za-z0-9+/]{30,}={0,2}",
    "a Telegram token": r"\b\d{8,10}:AA[\w-]{33}\b",
    "a webhook": r"discord(?:app)?\.com/api/webhooks/\d+/[\w-]{20,}|\.webhook\.office\.com/webhookb2/\S{20,}",
    "an authorization header": r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+[\w.~+/=-]{8,}",
    "a token in a URL": (
        r"(?i)\b[a-z][a-z0-9+.-]*://[^\s\"'<>]*[?&#](?:[\w-]*token|[\w-]*api[_-]?key|key|sig|signature|x-amz-signature"
        r"|auth|secret|client_secret|passw(?:or)?d|pwd)=[^\s\"'&<>{}]{6,}"
        r"|\bhttps?://[\w.~-]{16,}@[\w-]+\.[^\s\"'<>]+"
    ),
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "a password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'{}<>]+:[^\s/@\"'{}<>]+@",
}
# key = value, "key": "value", key: value, and a value on the next line (| of YAML, a list); not the names of a
# tokenizer's tokens (eos_token), nor what is null.  A short password ends its line or its quotes, since prose goes on
# after a colon.
PASSWORDS = r"passw(?:or)?d | passwd | pass[_-]?code | (?<![a-z]) pwd | (?:db|ftp|mysql|pg|root|smtp|sudo|user) _?pass"
VALUE = r"""["']? \s* [:=] [^\S\n]* (?: [|>][+-]?\d? [^\S\n]* \n\s+ | [\[(]? \s* (?=["']) )? ["']?
    (?P<value> (?! null | none | true | false )"""
NAMED = [
    rf"""(?ix) (?<![a-z0-9]) [\w-]*
    (?: (?:api|access|account|encryption|private|signing|wandb)[_-]?key | secret(?:[_-]?(?:access[_-]?)?key)?
      | (?:access|api|auth|bearer|hf|hub|refresh)[_-]?token | {PASSWORDS} ) {VALUE} [^\s"',}}\]]{{8,}} )""",
    rf"""(?ix) (?<![a-z0-9]) [\w-]* (?: {PASSWORDS} ) {VALUE} [^\s"',}}\]]{{3,7}} ) (?= ["',;}})\]] | [^\S\n]*$ )""",
    rf"""(?ix) (?<![a-z0-9]) [\w-]* pass-?phrase {VALUE} [^\s"',}}\]]{{3,}} )""",
]
PATHS: dict[str, str] = {
    "a user's folder on Windows": r"(?i)\b[a-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/)[^\\/\"'\s<>|]+",
    "a user's folder": r"(?<![\w.~-])/(?:home|Users)/[^\\/\"'\s<>]+",
    "a file URL": r"\bfile://[^\s\"'<>]+",
    "a network path": (
        r"(?<![\w\\])\\{2}(?:\\{2})?[A-Za-z][\w.-]+\\{1,2}[\w$.-]{2,}(?:\\{1,2}[^\\\s\"'<>]+)*"
        r"|\b(?:smb|cifs|nfs|afp|sftp|ssh)://[^\s\"'<>]+"
    ),
    "a mounted folder": r"(?<![\w.~-])/(?:mnt|Volumes|net|nfs|gpfs|lustre|scratch)/[^/\\\s\"'<>]+/[^\s\"'<>]+",
}
MAIL = r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"


@dataclass(frozen=True)
class Finding:
    """One thing found in a file.

    file: path in the repository; where: "line 3", "header" ...; shown: its beginning; grave: it must not be published
    (an e-mail address may be meant to be)
    """

    file: str
    where: str
    what: str
    shown: str
    grave: bool = True

    def __str__(self) -> str:
        return f"{self.file}, {self.where}, holds {self.what} ({self.shown})"


def check_private(files: Files, roots: Iterable[Path]) -> list[Finding]:
    """Raise PublishError if a file holds a secret or a path of this machine; return findings that only need a warning.

    roots: folders whose paths are searched for, besides home folders
    """
    findings = list(search(files, roots))
    grave = [one for one in findings if one.grave]
    if grave:
        lines = [str(one) for one in grave[:SHOWN]]
        more = f"\n(and {len(grave) - SHOWN} more)" if len(grave) > SHOWN else ""
        raise PublishError(";\n".join(lines) + f"{more}; take it out, then publish again; nothing was sent")
    return findings


def search(files: Files, roots: Iterable[Path]) -> Iterator[Finding]:
    """Yield every finding, file by file. Raises PublishError for a text file that is not UTF-8."""
    patterns = _patterns(roots)
    for name, file in files.items():
        for where, text, kinds in texts(name, file):
            lines: set[int] = set()
            for what, pattern, grave in patterns:
                if kinds == "secrets" and (not grave or what in PATHS or what == HERE):
                    continue
                for match in pattern.finditer(text):
                    line = text.count("\n", 0, match.start()) + 1
                    lines.add(line)
                    yield Finding(name, where or f"line {line}", what, _shown(what, match), grave)
            if kinds == "all":
                for number, line_text in enumerate(text.split("\n"), 1):
                    if number not in lines:
                        yield from _detected(name, where or f"line {number}", line_text)


HERE = "a path of this machine"
# Detectors that guess by randomness find every hash, and a version number looks like an address; names of settings are
# searched for by NAMED.  None of the others asks a server: verification is not called.
GUESSING = ("Base64 High Entropy String", "Hex High Entropy String", "Public IP (ipv4)", "Secret Keyword")


@cache
def _detectors() -> list[tuple[str, Any]]:
    """Return (kind, detector) of detect-secrets."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    kinds = get_mapping_from_secret_type_to_class()
    return [(kind, plugin()) for kind, plugin in sorted(kinds.items()) if kind not in GUESSING]


def _detected(name: str, where: str, line: str) -> Iterator[Finding]:
    for kind, detector in _detectors():
        for secret in detector.analyze_string(line):
            yield Finding(name, where, f"what detect-secrets takes for {kind}", f"{secret[:3]}...")


def _patterns(roots: Iterable[Path]) -> list[tuple[str, re.Pattern[str], bool]]:
    """Return (what, pattern, grave); paths of this machine come first, because they say more than "a user's folder"."""
    # / and /tmp would be found in many a text that has nothing to do with this machine.
    names = {str(root) for root in {Path.home(), Path.cwd(), *roots} if len(root.parts) > 1 and str(root) != "/tmp"}
    found: list[tuple[str, str, bool]] = []
    if names:
        names |= {json.dumps(name)[1:-1] for name in names}  # as JSON escapes what is not ASCII, and backslashes
        either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        found.append((HERE, rf"(?<![\w.])(?:{either})(?=[/\\\"'\s,;:)]|$)", True))
    found += [(what, pattern, True) for what, pattern in SECRETS.items()]
    found += [("what is named as a secret", pattern, True) for pattern in NAMED]
    found += [(what, pattern, True) for what, pattern in PATHS.items()]
    found += [("an e-mail address", MAIL, False)]
    return [(what, re.compile(pattern, re.MULTILINE), grave) for what, pattern, grave in found]


def _shown(what: str, match: re.Match[str]) -> str:
    text = match[0]
    if what == HERE or what in PATHS or what == "an e-mail address":
        return text
    if what == "what is named as a secret":
        start = match.start("value") - match.start()
        return f"{text[:start]}{text[start : start + 3]}..."
    if what == "a password in a URL":
        return f"{text[: text.index('://') + 3]}{text.split('://')[1].split(':')[0]}:..."
    return text if what == "a private key" else f"{text[:6]}..."


# Texts of a file ------------------------------------------------------------------------------------------------------


def texts(name: str, file: Path | bytes) -> Iterator[tuple[str, str, str]]:
    """Yield (place in the file, or "" for lines of text; text; "all", or "secrets" alone for vocabularies)."""
    last = name.rpartition("/")[2]
    if name.endswith(".safetensors"):
        found = header(name, file)
        yield "header", json.dumps(found.pop("__metadata__", None) or {}, indent=1, ensure_ascii=False), "all"
        yield "header", "\n".join(found), "all"
    elif name.endswith(".png"):
        yield from ((where, text, "all") for where, text in _png(name, file))
    elif name.endswith(".model"):
        yield "bytes", _bytes(file).decode("latin-1"), "secrets"
    else:
        try:
            text = _bytes(file).decode("utf8")
        except UnicodeDecodeError as error:
            raise PublishError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start}); correct it") from None
        yield "", text, "secrets" if last in VOCABULARY else "all"
        if last == "tokenizer.json":
            yield "besides its words", _without_words(text), "all"


def _bytes(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _without_words(text: str) -> str:
    """Return a tokenizer's JSON without its vocabulary: templates, normalisers, names of files."""
    content = json.loads(text)
    if isinstance(content, dict):
        content.pop("added_tokens", None)
        if isinstance(content.get("model"), dict):
            content["model"] = {key: value for key, value in content["model"].items() if key not in ("vocab", "merges")}
    return json.dumps(content, indent=1, ensure_ascii=False)


def header(name: str, file: Path | bytes) -> dict[str, Any]:
    """Return the JSON header of a safetensors file: shapes of the tensors by name, and "__metadata__"."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            raw = stream.read(size) if size <= HEADER else b""
    else:
        size = int.from_bytes(file[:8], "little")
        raw = file[8 : 8 + size] if size <= HEADER else b""
    try:
        return dict(json.loads(raw))
    except (ValueError, TypeError):
        raise PublishError(f"{name} is no safetensors file: its header cannot be read; save it again") from None


def _png(name: str, file: Path | bytes) -> Iterator[tuple[str, str]]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file)) as image:
            image.load()  # texts may come after the pixels
            kept = {key: value for key, value in image.info.items() if key != "exif"}
            yield from ((f"text {key}", str(value)) for key, value in kept.items() if isinstance(value, str | bytes))
            yield from ((f"EXIF {key}", str(value)) for key, value in image.getexif().items())
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise PublishError(f"{name} is not a readable picture ({error}); draw it again, or delete it") from None
