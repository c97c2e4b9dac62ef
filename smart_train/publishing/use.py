"""The part of a card that says how an adapter is used: program text that runs as it stands.

Knows: the settings of an adapter, how sentence-transformers, peft and transformers load.
Does not know: figures, files.
Only a base that was a folder of its publisher's has to be named by whoever runs it: HERE stands in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smart_train.bases import LOCAL, PACKAGE

HERE = "FOLDER OF THE BASE"
FEW_BITS = "The base was held in 4 bits while it was trained; on top of the whole base it has other vectors."
SIDES = ("query", "document")
POOLED = {  # pooling mode -> how it is taken from states [rows, tokens, D] and mask [rows, tokens, 1]
    "mean": "(states * mask).sum(1) / mask.sum(1)",
    "cls": "states[torch.arange(len(states)), mask[..., 0].argmax(1)]",
    "lasttoken": "states[torch.arange(len(states)), states.shape[1] - 1 - mask[..., 0].flip(1).argmax(1)]",
}


@dataclass
class Used:
    """repo: where it lies; base: as others may read it; commit: of a Hub base; kind: lora, full or frozen

    pooling: mode of the saved folder's pooling, None where pooled vectors take more than that (a Dense module, a chat
    template, pictures, a prompt that is not pooled); limits: longest query and document in tokens, of the adapter or
    else of the base; own: whether they are the adapter's; chat: contents go through a chat template; prompts: of query
    and document
    export: merged, multi-vector or None; quantised: the base was held in 4 bits, and must be again
    """

    repo: str
    base: str
    commit: str | None
    kind: str
    vision: bool
    pooling: str | None
    limits: dict[str, int | None]
    own: bool
    chat: bool
    prompts: dict[str, str]
    trust: bool = False
    export: str | None = None
    quantised: bool = False

    @property
    def on_hub(self) -> bool:
        return not self.base.startswith((LOCAL, PACKAGE))


def used(repo: str, settings: dict[str, Any], modules: list[dict[str, Any]], pooling: dict[str, Any] | None) -> Used:
    """settings: smart_train.json as it goes up; modules: modules.json; pooling: the pooling's configuration."""
    processing = settings["processing"]
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    vision = processing.get("pixels") is not None
    by_hand = not vision and processing.get("chat_template") is None and kinds[:2] == ["Transformer", "Pooling"]
    plain = by_hand and set(kinds[2:]) <= {"Normalize"}
    prompts = {side: settings["model"][f"{side}_prompt"] or "" for side in SIDES}
    # A pooling that leaves the prompt out is more than one line.
    plain = plain and ((pooling or {}).get("include_prompt", True) or not any(prompts.values()))
    mode = (pooling or {}).get("pooling_mode") if plain else None
    return Used(
        repo=repo,
        base=settings["base"],
        commit=settings["commit"],
        kind=settings["adapter"]["kind"] if settings["adapter"] else "frozen",
        vision=vision,
        pooling=mode if mode in POOLED else None,
        limits={side: settings["model"][f"{side}_tokens"] or processing.get("max_tokens") for side in SIDES},
        own=any(settings["model"][f"{side}_tokens"] for side in SIDES),
        chat=processing.get("chat_template") is not None,
        prompts=prompts,
        trust=bool(settings["model"].get("trust_remote_code")),
        export=settings.get("export", {}).get("kind"),
        quantised=settings["model"].get("quantisation", "none") != "none",
    )


def use(it: Used) -> str:
    """The section's text, without its heading."""
    install = "pip install smart-train"
    if it.base.startswith(PACKAGE):
        install += " " + it.base.removeprefix(PACKAGE).partition("/")[0].replace("_", "-")
    install += " bitsandbytes" * it.quantised
    if it.export == "multi-vector":
        return "\n\n".join(_multi_vector(it, it.repo))
    parts = [f"`{install}`", *_ours(it), *_plain(it), *_by_hand(it), *_ranked(it)]
    if it.kind == "lora":
        parts += ["Token vectors with sentence-transformers alone, after the adapter was made a model of its own:"]
        parts += _exported(it)
    return "\n\n".join(parts)


def _code(*lines: str, language: str = "python") -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _contents(it: Used) -> tuple[str, str]:
    """(documents as program text, a comment on them)."""
    if it.vision:
        return '["a passage", "another passage"]', "  # or pathlib.Path of a page's image, or PIL images"
    return '["a passage", "another passage"]', ""


def _ours(it: Used) -> list[str]:
    needed = it.base.startswith(LOCAL) and it.kind != "full"  # whole weights are their own base
    options = f', base="{HERE}"' if needed else ""
    options += ", trust_remote_code=True" if it.trust else ""
    documents, note = _contents(it)
    return [
        "Pooled, late and hybrid scores, with `revision=` for one of this repository's commits or tags:",
        _code(
            "from smart_train import SmartEncoder",
            "",
            f'encoder = SmartEncoder.from_pretrained("{it.repo}"{options})',
            f"documents = encoder.encode_documents({documents}){note}",
            'scores = encoder.score(["a question"], documents, mode="hybrid")  # or pooled, late',
            "print(scores)  # [queries, documents]",
        ),
    ]


def _program(it: Used, imports: list[str], *lines: str) -> str:
    """A block that has ``base``, for loaders that know no package:NAME/FOLDER."""
    if not it.base.startswith(PACKAGE):
        return _code(*imports, "", f'base = "{HERE if it.base.startswith(LOCAL) else it.base}"', *lines)
    package, _, folder = it.base.removeprefix(PACKAGE).partition("/")
    name = package.replace("-", "_")
    place = f"base = str(Path({name}.__file__).parent" + (f' / "{folder}")' if folder else ")")
    return _code("from pathlib import Path", "", f"import {name}", *imports, "", place, *lines)


def _pinned(it: Used) -> str:
    options = f', revision="{it.commit}"' if it.commit else ""
    return options + (", trust_remote_code=True" if it.trust else "")


def _plain(it: Used) -> list[str]:
    """The pooled vectors with sentence-transformers, and what must be minded there."""
    what = "Pooled vectors alone, with sentence-transformers and without smart-train"
    if it.own and it.chat:
        cut = ", ".join(f"{side} {it.limits[side]}" for side in SIDES if it.limits[side])
        what += f" (which reads texts whole, where smart-train cuts them at tokens: {cut})"
    load = ["from sentence_transformers import SentenceTransformer"]
    trust = ", trust_remote_code=True" if it.trust else ""
    if it.kind == "full" or (it.kind == "lora" and it.on_hub):
        note = ":"
        if it.kind == "lora":
            note = " (it takes the base at its newest commit, whatever the adapter was trained on):"
        made = f'model = SentenceTransformer("{it.repo}"{trust})'
        return [what + note, _code(*load, "", made, *_encoding(it, {}))]
    if it.quantised:
        return [f"{what}: only after `smart-train export --as merged`. {FEW_BITS}"]
    made = f"model = SentenceTransformer(base{_pinned(it) if it.on_hub else trust})"
    # The base's own prompts may be others: these are named.
    lines = _encoding(it, {side: text for side, text in it.prompts.items() if any(it.prompts.values())})
    if it.kind == "frozen":
        return [f"{what}: they are the base's own.", _program(it, load, made, *lines)]
    return [f"{what}:", _program(it, load, made, f'model.load_adapter("{it.repo}")', *lines)]


def _encoding(it: Used, prompts: dict[str, str]) -> list[str]:
    """Lines that encode a query and documents, cut where the adapter's own limits are, and tell the scores."""
    lines = []
    for side, contents in (("query", '["a question"]'), ("document", _contents(it)[0])):
        if it.own and not it.chat:
            lines.append(f"model.max_seq_length = {it.limits[side]}")
        prompt = f", prompt={prompts[side]!r}" if side in prompts else ""
        name = "queries" if side == "query" else "documents"
        lines.append(f"{name} = model.encode_{side}({contents}{prompt})")
    return [*lines, "print(model.similarity(queries, documents))"]


def _by_hand(it: Used) -> list[str]:
    """With peft and transformers, and the pooling by hand where that is one line."""
    if it.kind == "frozen" or it.quantised:
        return []
    what = "With plain peft" if it.kind == "lora" else "With plain transformers"
    if it.vision or it.pooling is None:
        what += ": the adapted model; its inputs must be formatted as sentence-transformers does it"
    imports = ["import torch"] if it.pooling else []
    imports += ["from peft import PeftModel"] if it.kind == "lora" else []
    imports += [f"from transformers import AutoModel{', AutoTokenizer' if it.pooling else ''}"]
    if it.kind == "lora":
        lines = [f"model = AutoModel.from_pretrained(base{_pinned(it)})"]
        lines += [f'model = PeftModel.from_pretrained(model, "{it.repo}").eval()']
    else:
        lines = [f"model = AutoModel.from_pretrained(base{_pinned_own(it)}).eval()"]
    if it.pooling:
        pinned = _pinned(it) if it.kind == "lora" else _pinned_own(it)
        texts = repr([it.prompts["document"] + "a passage", it.prompts["document"] + "another passage"])
        limit = it.limits["document"]
        cut = f"truncation=True, max_length={limit}, " if limit else ""
        lines += [
            f"tokenizer = AutoTokenizer.from_pretrained(base{pinned})",
            f'inputs = tokenizer({texts}, padding=True, {cut}return_tensors="pt")',
            "with torch.no_grad():",
            "    states = model(**inputs).last_hidden_state  # [rows, tokens, D]",
            'mask = inputs["attention_mask"].unsqueeze(-1)',
            f"documents = torch.nn.functional.normalize({POOLED[it.pooling]}, dim=-1)",
            "print(documents.shape)",
        ]
    if it.kind == "lora":
        return [f"{what}:", _program(it, imports, *lines)]
    return [f"{what}:", _code(*imports, "", f'base = "{it.repo}"', *lines)]


def _pinned_own(it: Used) -> str:
    return ", trust_remote_code=True" if it.trust else ""


def _multi_vector(it: Used, place: str) -> list[str]:
    trust = ", trust_remote_code=True" if it.trust else ""
    program = _code(
        "from sentence_transformers import MultiVectorEncoder",
        "",
        f'model = MultiVectorEncoder("{place}"{trust})',
        'queries = model.encode_query(["a question"])',
        f"documents = model.encode_document({_contents(it)[0]})",
        "print(model.similarity(queries, documents))",
    )
    return (
        ["Token vectors and late scores, with sentence-transformers alone:", program] if place == it.repo else [program]
    )


def _exported(it: Used) -> list[str]:
    base = f' --base "{HERE}"' if it.base.startswith(LOCAL) else ""
    trust = " --trust-remote-code" if it.trust else ""
    line = f"smart-train export {it.repo} --as multi-vector --out late{base}{trust}"
    return [_code(line, language="bash"), *_multi_vector(it, "late")]


def _ranked(it: Used) -> list[str]:
    base = it.repo if it.kind == "full" else HERE if it.base.startswith(LOCAL) else it.base
    trust = " --trust-remote-code" if it.trust else ""
    line = f'smart-train evaluate DATA --model "{base}" --adapter {it.repo} --output figures{trust}'
    return [
        "On the command line, over a folder of your own with a corpus, queries and qrels:",
        _code(line, language="bash"),
    ]
