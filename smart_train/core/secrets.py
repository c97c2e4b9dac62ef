"""Search what is about to be sent for secrets: tokens, keys, passwords, and paths of this machine and network.

``publish`` searches its files, ``data push`` every text and picture of its tables.  Our own patterns come first; what
they miss is left to detectors of detect-secrets (Yelp).  Nothing here asks a server.
"""

from __future__ import annotations

import io
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from smart_train.core.errors import PublishError

Files = dict[str, Path | bytes]
"""Path in the repository -> local file, or its content where that was changed."""

# Words of a vocabulary: some look like paths, and "password": 20786 is one with its number.
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
HEADER = 100 << 20  # bytes; safetensors itself reads no longer one
SHOWN = 8  # findings in one message
SEPARATOR = "\n\0\n"  # between texts that are searched together; no pattern matches across it

# What it is -> how it looks, after a word boundary.  Where the beginning is also the beginning of words joined by
# hyphens (sk-learn), the rest must hold a digit.
TOKENS: dict[str, str] = {
    "a Hugging Face token": r"(?:hf|api_org|hf_oauth)_[A-Za-z0-9]{30,}",
    "an OpenAI-like key": r"sk-(?=[\w-]{0,200}\d)[\w-]{20,}",
    "an AWS access key": r"(?:AKIA|ASIA|ABIA|ACCA|A3T[A-Z0-9])[A-Z0-9]{16}\b",
    "a GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,})",
    "a GitLab token": r"gl(?:pat|rt|dt|ptt|soat|ft|cbt|imt|agent|oas)-[\w.-]{20,}",
    "a Slack token": r"(?:xox[a-z](?:\.xox[a-z])?-[\w-]{10,}|xapp-\d-[\w-]{10,})",
    "a Google key": r"(?:AIza[\w-]{35}|GOCSPX-[\w-]{20,}|ya29\.[\w-]{20,}|1//0[\w-]{30,})",
    "a Stripe key": r"(?:[rs]k_(?:live|test)_\w{16,}|whsec_[\w/+]{16,})",
    "an npm token": r"npm_[A-Za-z0-9]{30,}",
    "an Azure key": (
        r"(?:(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{30,}={0,2}|[\w~.]{3}\dQ~[\w~.-]{31,34}"
        r"|SharedAccessSignature\s+sr=\S{20,})"
    ),
    "a Telegram token": r"\d{8,10}:[\w-]{35}(?![\w-])",
    "a Discord token": r"(?:[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,38}|mfa\.[\w-]{80,})",
    "a Twilio key": r"(?:SK|AC)[0-9a-f]{32}\b",
    "a Square token": r"(?:sq0[a-z]{3}-[\w-]{22,}|EAAA[\w-]{60})",
    "a Facebook token": r"EAA[A-Z][A-Za-z0-9]{60,}",
    "a Dropbox token": r"sl\.[\w-]{60,}",
    "a Databricks token": r"dapi[0-9a-f]{32}(?:-\d)?",
    "a Mailgun or Mailchimp key": r"(?:key-[0-9a-f]{32}|[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8}|[0-9a-f]{32}-us\d{1,2})\b",
    "a Terraform token": r"[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,}",
    "an Airtable token": r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}",
    "a HubSpot token": r"pat-(?:na|eu)\d-[0-9a-f-]{36}",
    "a PayPal token": r"access_token\$(?:production|sandbox)\$\w+",
    "a Plaid token": r"access-(?:sandbox|development|production)-[0-9a-f-]{36}",
    "a Mapbox token": r"[st]k\.eyJ[\w.-]{40,}",
    "a Firebase key": r"AAAA[\w-]{7}:[\w-]{100,}",
    "a Cloudflare key": r"v1\.0-[0-9a-f]{24}-[0-9a-f]{100,}",
    "a W&B key": r"(?:wandb_v\d_\w{16,}|local-[0-9a-f]{40})",
    # The beginnings of single issuers' tokens: Alibaba, Anthropic's and others' under "OpenAI-like", Artifactory, Age,
    # Atlassian, Bitbucket, Brevo, CircleCI, Contentful, crates.io, DigitalOcean, Docker, Doppler, Dynatrace, Figma,
    # Flutterwave, Grafana, Groq, Heroku, Jina, Kaggle, LangSmith, Linear, LlamaCloud, Netlify, New Relic, Notion,
    # NuGet, NVIDIA, Perplexity, Pinecone, PlanetScale, Postman, Prefect, Pulumi, PyPI, Razorpay, Replicate, Resend,
    # RubyGems, RunPod, SendGrid, Sentry, Shippo, Shopify, Sourcegraph, Supabase, Tailscale, Tavily, Vault, Voyage, xAI
    "an issuer's token": (
        r"(?:do[opr]_v1_|dckr_[op]at_|shp(?:at|ca|pa|ss|tka)_|r8_|gsk_|nvapi-|gl(?:sa|c)_|hv[sbr]\.|lin_(?:api|oauth)_"
        r"|ntn_|secret_(?=[A-Za-z0-9]{43})|lsv2_(?:pt|sk)_|pcsk_|dp\.(?:pt|st|ct|sa|scim|audit)\.|sntry[su]_|ATATT3"
        r"|ATCTT3|ATBB(?=[A-Za-z0-9]{20})|PMAK-|pscale_(?:pw|tkn|oauth)_|sb[ps]_|sb_secret_|nfp_|HRKU-|rubygems_"
        r"|NR(?:AK|II|JS)-|dt0[cs]\d\d\.|figd_|AGE-SECRET-KEY-1|pypi-|SG\.|LTAI(?=\w{0,200}\d)|AKC(?=p?[A-Za-z0-9]{20})"
        r"|xkeysib-|xsmtpsib-|CCIPAT_|CFPAT-|cio(?=[A-Za-z0-9]{32}\b)|FLWSECK(?:_TEST)?-|jina_|KGAT_|llx-|oy2(?=\w{43})"
        r"|pnu_|pul-|rzp_(?:live|test)_|re_(?=\w{8}_)|rpa_|shippo_(?:live|test)_|sgp_|tskey-|tvly-|ops_eyJ|pa-(?=\w{30})"
        r"|pplx-|xai-|fc-(?=[0-9a-f]{32})|fw_(?=[A-Za-z0-9]{22})|esecret_|hfr_|vcp_|rf_(?=\w{20}))(?=[\w.-]{0,200}\d)[\w.-]{16,}"
    ),
    "a webhook": (
        r"(?:hooks\.slack\.com/(?:services|workflows)/\S{20,}|discord(?:app)?\.com/api/webhooks/\d+/[\w-]{20,}"
        r"|[\w-]{1,64}\.webhook\.office\.com/webhookb2/\S{20,})"
    ),
    "a JSON web token": r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*",
}
SECRETS: dict[str, str] = {
    "an authorization header": (
        r"(?i)\bauthorization[\"']?\s{0,9}[:=]\s{0,9}[\"']?(?:bearer|basic|token|apikey)\s{1,9}[\w.~+/=-]{8,}"
    ),
    "a bearer token": r"(?i)\bbearer\s{1,9}(?=[\w.~+/-]{0,200}\d)[\w.~+/-]{20,}",
    "a token in a URL": (
        r"[?&#;](?i:[\w-]{0,40}(?:token|api[_-]?key|secret|signature|passw(?:or)?d)|key|sig|auth|pwd|code)"
        r"=[^\s\"'&<>{}]{6,}|\bhttps?://(?=[\w.~-]{0,200}\d)[\w.~-]{16,}@[\w-]+\.[^\s\"'<>]+"
    ),
    "a password in a URL": r"://[^\s/:@\"'{}<>]{0,200}:[^\s/@\"'{}<>]{1,200}@",
    "a private key": (
        r"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----|---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"
        r"|PuTTY-User-Key-File-\d"
    ),
    "a password on a command line": (
        r"(?:--(?:[a-z]{1,20}-){0,3}(?:password|passwd|passphrase|token|secret|api-?key)[ =]\s{0,9}(?!-)(?![A-Z_]+\b)"
        r"|sshpass\s{1,9}-p\s{0,9}|curl\b[^\n]{0,200}\s(?:-u|--user)[ =]?\s{0,9}[\"']?[\w.@-]{1,64}:"
        r"|machine\s{1,9}\S{1,99}\s{1,9}login\s{1,9}\S{1,99}\s{1,9}password\s{1,9})(?P<value>[^\s\"'<>]{3,})"
    ),
}

# What is named as a secret: key = value, "key": "value", key: value, also with the value on the next line (| of YAML,
# an indented line, a list).  The last part of a name is searched for, then the name is read, then the value.  All
# repetitions have a bound, so that no text takes long.
NAMED = re.compile(
    r"""(?ix) (?: passw(?:or)?d | passwort | pass[_-]?code | pass-?phrase | kennwort | contrase[nñ]a | senha | passe
    | pass | pwd | pw | secret | token | key ) (?= \\?["'`]? \s{0,9} (?: [:=>] | -> | (?:is|was)\s ) )"""
)
NAMES = {  # kind -> the name that ends there
    "password": re.compile(
        r"""(?ix) (?: passw(?:or)?d | passwort | pass[_-]?code | pass-?phrase | kennwort | contrase[nñ]a | senha
        | mot[ ]de[ ]passe | (?<![a-z])pwd | (?:db|ftp|mysql|pg|root|smtp|sudo|user)_?pass ) $"""
    ),
    "key": re.compile(
        r"""(?ix) (?: (?:api|access|admin|encryption|private|signing|wandb)[_-]?key
        | secret(?:[_-]?(?:access[_-]?)?key)? | (?:access|api|auth|bearer|hf|hub|refresh|session)[_-]?token ) $"""
    ),
    "other": re.compile(r"""(?ix) (?: (?<![a-z0-9])(?:pass|pw) | [a-z0-9][_-]?(?:token|key) ) $"""),
    "kaggle": re.compile(r'"(?:key|token)$'),
}
PHRASE = re.compile(r"(?i)pass-?phrase$")
LINE = re.compile(r"(?i)[\s{,-]*(?:export\s+)?[\"']?[\w.-]*$")  # of a line up to a name: the name is all it has
# No value: null, and what stands for one ($NAME, <yours>).
EMPTY = r"""(?! (?:null|none|true|false|required|optional)\b | \$[{(] | \$[A-Z_]+\b | <[\w ] | \{\{? | \*{3} | \.\.\.
    | os\. | getenv | environ | \[\] )"""
SIGN = r"""\\?["'`]? \s{0,9} (?: [:=]{1,2} | [=-]> )"""
START = r"""(?: [^\S\n]{0,99} (?: [|>][+-]?\d? )? [^\S\n]{0,99} \n{1,3} [ \t]{1,99}
    (?! [\w.-]{1,99} ["']? \s{0,9} : (?:\s|$) )
    | [^\S\n]{0,99} [\[(] \s{0,99} (?=["']) | \s{0,99} (?=["']) | [^\S\n]{0,99} ) (?: \\?["'] )?"""
ENDED = r"""(?= ["',;}})\]<] | \\["'n] | [^\S\n]*$ )"""  # by its quotes or its line: prose goes on after a colon
VALUES: dict[str, list[str]] = {
    "password": [
        rf"{SIGN} {START} {EMPTY} (?P<value> [^\s\"',}}\]]{{8,200}} )",
        rf"(?: {SIGN} {START} | > ) {EMPTY} (?P<value> [^\s\"',;}})\]<\\]{{3,200}} ) {ENDED}",
        rf"{SIGN} \s{{0,99}} [\"'] {EMPTY} (?P<value> [^\"'\n]{{3,200}} ) [\"']",
        rf"= {EMPTY} (?P<value> [^\s\"'<>,;)}}\]\\]{{3,200}} )",
        r"\s{1,9} (?:is|was) \s{1,9} [\"']? (?P<value> (?=[^\s\"']{0,200}\d) [^\s\"']{4,200} )",
    ],
    "line": [rf"[\"']? \s{{0,9}} [:=] [^\S\n]{{0,99}} {EMPTY} (?P<value> [^\s\[{{|>][^\n]{{2,200}} )"],
    "key": [rf"{SIGN} {START} {EMPTY} (?P<value> [^\s\"',}}\]]{{8,200}} )"],
    "other": [
        rf"{SIGN} {START} {EMPTY} (?P<value> (?=[\w+/=.!@#$%-]{{0,200}}\d) (?=[\w+/=.!@#$%-]{{0,200}}[a-z])"
        r" [\w+/=.!@#$%-]{16,200} ) (?= [\"',;}\s] | $ )"
    ],
    "pass": [
        rf"{SIGN} \s{{0,9}} [\"']? {EMPTY} (?P<value> (?=[^\s\"']{{0,99}}\d) (?=[^\s\"']{{0,99}}[a-z])"
        r" [^\s\"']{4,99} )"
    ],
    "kaggle": [r"\" \s{0,9} : \s{0,9} \" (?P<value> [0-9a-f]{32} ) \" (?= \s{0,9} [,}] )"],
}
# A pattern that begins with a character, and looks back after it, is ten times as fast as one that looks back first.
PATHS: dict[str, str] = {
    "a user's folder on Windows": r"(?i)\b[a-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/)[^\\/\"'\s<>|]+",
    "a user's folder": r"/(?<![\w.~-]/)(?:(?:home|Users)/[^\\/\"'\s<>]+|root/[^\\\"'\s<>]+)",
    "a file URL": r"file://[\w/.~%-][^\s\"'<>]+",
    # \\server\share, and twice as many backslashes in JSON; \\alpha\\beta in JSON is LaTeX.
    "a network path": (
        r"\\(?<![\w\\]\\)(?:\\[A-Za-z][\w.$-]+\\(?!\\)[\w$.-]{2,}|\\{3}[A-Za-z][\w.$-]+\\{2}(?!\\)[\w$.-]{2,})"
        r"(?:\\{1,2}[^\\\s\"'<>]+)*|(?:smb|cifs|nfs|afp|sftp|scp|ssh|ftps?|ldaps?)://[^\s\"'<>]+"
        r"|@[\w.-]{1,99}:[~/][^\s\"'<>]+"
    ),
    "an internal host": (
        r"(?:https?|wss?)://(?i:localhost|(?:10|127)(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2}|\[::1?\]"
        r"|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2}|[a-z][\w-]*(?=[:/])"
        r"|[\w.-]{1,99}\.(?:internal|intranet|corp|local|localdomain|lan|home|private))(?![\w.-])[^\s\"'<>]*"
        r"|192\.168(?<![\d.]192\.168)(?:\.\d{1,3}){2}\b"
    ),
    "a mounted folder": (r"/(?<![\w.~-]/)(?:mnt|Volumes|media|net|nfs|gpfs|lustre|scratch)/[^/\\\s\"'<>]+/[^\s\"'<>]+"),
}
MAIL = r"\b[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"
HERE, NAME, ADDRESS, URL = (
    "a path of this machine",
    "what is named as a secret",
    "an e-mail address",
    "a password in a URL",
)

# Detectors of detect-secrets that are not used.  Those that guess by randomness find every hash, and a version number
# looks like an address.  Artifactory's finds words in capitals.  Those of names and values (keyword, IBM, Cloudant,
# SoftLayer) are what NAMED looks for, and would be most of the time.
UNUSED = (
    *("Base64 High Entropy String", "Hex High Entropy String", "Public IP (ipv4)", "Secret Keyword"),
    *("Artifactory Credentials", "IBM Cloud IAM Key", "IBM COS HMAC Credentials", "SoftLayer Credentials"),
    *("Cloudant Credentials", "Basic Auth Credentials"),
    # Quadratic in a text made for it, and TOKENS and NAMED have the same.
    *("JSON Web Token", "NPM tokens", "OpenAI Token"),
)


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


class Searcher:
    """Searches texts.

    roots: folders whose paths are searched for, besides this machine's home and working folder
    """

    def __init__(self, roots: Iterable[Path] = ()) -> None:
        # / and /tmp would be found in many a text that has nothing to do with this machine.
        names = {str(root) for root in {Path.home(), Path.cwd(), *roots} if len(root.parts) > 1 and str(root) != "/tmp"}
        paths = dict(PATHS)
        if names:
            names |= {json.dumps(name)[1:-1] for name in names}  # as JSON escapes what is not ASCII, and backslashes
            either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
            paths = {HERE: rf"(?<![\w.])(?:{either})(?=[/\\\"'\s,;:)]|$)", **PATHS}
        self._paths = [(what, re.compile(pattern, re.MULTILINE)) for what, pattern in paths.items()]

    def search(self, text: str, words: bool = False) -> Iterator[tuple[int, str, str, bool]]:
        """Yield (position, what it is, its beginning, whether it is grave) of every finding.

        words: the text is a vocabulary, which holds secrets alone: no passwords by name, no paths
        """
        secrets, mail = _patterns()
        taken = bytearray(len(text))  # 1 = of a secret: an address after user:password@ would show the password

        def fresh(match: re.Match[str], mark: bool = False) -> bool:
            start, end = match.span()
            free = taken.find(1, start, end) < 0
            if mark and free:
                taken[start:end] = b"\1" * (end - start)
            return free

        for what, pattern in secrets:
            for match in pattern.finditer(text):
                if fresh(match, mark=True):
                    kind = what or next(TOKEN_NAMES[group] for group, value in match.groupdict().items() if value)
                    yield match.start(), kind, _shown(kind, match), True
        if words:
            return
        for match in _named(text):
            if fresh(match, mark=True):
                yield match.start(), NAME, _shown(NAME, match), True
        for what, pattern in self._paths:
            yield from ((m.start(), what, m[0], True) for m in pattern.finditer(text) if fresh(m))
        yield from _detected(text, taken)
        yield from ((m.start(), ADDRESS, m[0], False) for m in mail.finditer(text) if fresh(m))


TOKEN_NAMES = {f"k{number}": what for number, what in enumerate(TOKENS)}


@cache
def _patterns() -> tuple[list[tuple[str, re.Pattern[str]]], re.Pattern[str]]:
    """Return patterns of secrets, and of e-mail addresses.  All tokens are one pattern ("" = by its group): it takes
    little longer than one of them alone."""
    tokens = "|".join(f"(?P<{group}>{TOKENS[what]})" for group, what in TOKEN_NAMES.items())
    secrets = [("", re.compile(rf"\b(?=[\w.:/~$+=-]{{16}})(?:{tokens})"))]
    secrets += [(what, re.compile(pattern, re.MULTILINE)) for what, pattern in SECRETS.items()]
    return secrets, re.compile(MAIL)


@cache
def _values(kind: str) -> list[re.Pattern[str]]:
    return [re.compile(pattern, re.VERBOSE | re.IGNORECASE | re.MULTILINE) for pattern in VALUES[kind]]


def _named(text: str) -> Iterator[re.Match[str]]:
    """Yield what follows a name of a secret, from the sign between them on, with the group "value"."""
    for found in NAMED.finditer(text):
        name = text[max(0, found.start() - 40) : found.end()]
        kinds = [kind for kind, pattern in NAMES.items() if pattern.search(name)]
        if "password" in kinds:
            line = text[max(text.rfind("\n", 0, found.start()) + 1, found.start() - 99) : found.end()]
            kinds += ["line"] if PHRASE.search(name) or LINE.match(line) else []
        kinds = ["pass" if kind == "other" and name[-2:].lower() in ("ss", "pw") else kind for kind in kinds]
        matches = (pattern.match(text, found.end()) for kind in kinds for pattern in _values(kind))
        match = next((match for match in matches if match), None)
        if match is not None:
            yield match


@cache
def _detectors() -> list[tuple[str, Any]]:
    """Return (kind, detector) of detect-secrets."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    kinds: dict[str, Any] = get_mapping_from_secret_type_to_class()
    return [(kind, plugin()) for kind, plugin in sorted(kinds.items()) if kind not in UNUSED]


def _detected(text: str, taken: bytearray) -> Iterator[tuple[int, str, str, bool]]:
    """Search with detect-secrets.  Its detectors look at a line; their expressions find the lines to show them, since
    showing them all takes a hundred times as long."""
    for kind, detector in _detectors():
        seen: set[int] = set()
        for match in (match for pattern in detector.denylist for match in pattern.finditer(text)):
            start = text.rfind("\n", 0, match.start()) + 1
            end = text.find("\n", match.start())
            end = len(text) if end < 0 else end
            if start in seen or taken.find(1, match.start(), match.end()) >= 0:
                continue
            seen.add(start)
            for secret in detector.analyze_string(text[start:end]):
                yield match.start(), f"what detect-secrets takes for {kind}", _beginning(secret), True


def _shown(what: str, match: re.Match[str]) -> str:
    text = match[0]
    if what == "a private key":
        return text
    if what == URL:
        user = text[3:].partition(":")[0]
        scheme = re.search(r"[\w+.-]{0,20}$", match.string[max(0, match.start() - 20) : match.start()])
        return f"{scheme[0] if scheme else ''}://{user if len(user) <= 12 else _beginning(user)}:..."
    if "value" in match.re.groupindex:
        start = match.start("value")
        name = re.search(r"[\w.-]{0,40}$", match.string[max(0, match.start() - 40) : match.start()])
        before = re.sub(r"\s+", " ", match.string[match.start() : start])
        return f"{name[0] if name else ''}{before[-60:]}{_beginning(match['value'], 3)}"
    return _beginning(text)


def _beginning(secret: str, most: int = 6) -> str:
    """Return at most so many characters, and a quarter, of a secret."""
    return f"{secret[: min(most, len(secret) // 4)]}..."


# Files ----------------------------------------------------------------------------------------------------------------


def check_private(files: Files, roots: Iterable[Path]) -> list[Finding]:
    """Raise PublishError if a file holds a secret or a path of this machine; return findings that only need a warning.

    roots: folders whose paths are searched for, besides home folders
    """
    findings = list(search(files, roots))
    grave = [one for one in findings if one.grave]
    if grave:
        raise PublishError(f"{listed(grave)}; take it out, then publish again; nothing was sent")
    return findings


def listed(findings: Sequence[Finding]) -> str:
    """Return the first findings, one a line, and how many more there are."""
    more = f"\n(and {len(findings) - SHOWN} more)" if len(findings) > SHOWN else ""
    return ";\n".join(str(one) for one in findings[:SHOWN]) + more


def search(files: Files, roots: Iterable[Path]) -> Iterator[Finding]:
    """Yield every finding, file by file. Raises PublishError for a text file that is not UTF-8."""
    searcher = Searcher(roots)
    for name, file in files.items():
        seen: set[tuple[str, str]] = set()  # in the text itself, where its line is known
        for where, text, words in texts(name, file):
            for position, what, shown, grave in searcher.search(text, words):
                if where and (what, shown) in seen:
                    continue
                seen.add((what, shown))
                yield Finding(name, where or f"line {text.count(chr(10), 0, position) + 1}", what, shown, grave)


def search_texts(searcher: Searcher, found: Sequence[tuple[str, str]], file: str) -> Iterator[Finding]:
    """Yield every finding of many short texts, each (where it is, text).  They are searched together, which is faster
    than one by one."""
    starts, length = [], 0
    for _, text in found:
        starts.append(length)
        length += len(text) + len(SEPARATOR)
    for position, what, shown, grave in searcher.search(SEPARATOR.join(text for _, text in found)):
        yield Finding(file, found[bisect_right(starts, position) - 1][0], what, shown, grave)


def texts(name: str, file: Path | bytes) -> Iterator[tuple[str, str, bool]]:
    """Yield (place in the file, or "" for lines of text; text; whether it is a vocabulary)."""
    last = name.rpartition("/")[2]
    if name.endswith(".safetensors"):
        found = header(name, file)
        yield "header", json.dumps(found.pop("__metadata__", None) or {}, indent=1, ensure_ascii=False), False
        yield "header", "\n".join(found), False
    elif name.endswith(".png"):
        yield from ((where, text, False) for where, text in picture_texts(name, file))
    elif name.endswith(".model"):
        yield "bytes", _bytes(file).decode("latin-1"), True
    else:
        text = _text(name, _bytes(file))
        yield "", text, last in VOCABULARY
        if last == "tokenizer.json":
            yield "besides its words", _without_words(name, text), False
        elif name.endswith(".json") and last not in VOCABULARY:
            with suppress(ValueError, RecursionError):  # as text it was searched
                yield "with its escapes resolved", SEPARATOR.join(strings(json.loads(text))), False


def _bytes(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _text(name: str, raw: bytes) -> str:
    try:
        text = raw.decode("utf8")
    except UnicodeDecodeError as error:
        raise PublishError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start}); correct it") from None
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8, in which no word would be found
        raise PublishError(f"{name} is not UTF-8 text (a NUL after {text.index(chr(0))} characters); correct it")
    return text


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PublishError(f"{name} is not JSON ({error}); correct it") from None


def strings(content: Any) -> Iterator[str]:
    """Yield every text of nested lists and dicts, keys too."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from strings(value)


def _without_words(name: str, text: str) -> str:
    """Return a tokenizer's JSON without its vocabulary: templates, normalisers, names of files."""
    content = _json(name, text)
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


def picture_texts(name: str, file: Path | bytes) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of the texts inside a picture.  Raises PublishError where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file)) as image:
            image.load()  # texts may come after the pixels
            yield from image_texts(image)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... by format
        raise PublishError(f"{name} is not a readable picture ({error}); draw it again, or delete it") from None


def image_texts(image: Any) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of the texts inside an opened picture: comments, XMP, EXIF."""
    for key, value in image.info.items():
        if key not in ("exif", "icc_profile") and isinstance(value, str | bytes):
            yield f"text {key}", value.decode("latin-1") if isinstance(value, bytes) else str(value)
    yield from ((f"EXIF {key}", str(value)) for key, value in image.getexif().items())
