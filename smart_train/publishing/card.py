"""A model card of facts: where the base is, how to load, what was measured, on what and how it was trained.

Knows: the parts of a card (facts.py, use.py), the Hub's metadata.  Does not know: files, the network.
Nothing that was not recorded is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from smart_train.publishing.errors import PublishError
from smart_train.publishing.facts import MODES, about, data, headline, kind_of, measured, training
from smart_train.publishing.use import use, used

RELATIONS = {"lora": "adapter", "frozen": "adapter", "free": "adapter", "full": "finetune"}
OWN = ("trained", "merged")  # the row of metrics.json that is the adapter's own: of a run, of several adapters in one
MEASURES = {"ndcg": "nDCG", "mrr": "MRR"}
DEEPEST = ("recall", "mrr")


@dataclass
class Told:
    """Everything a card is made of, as JSON was read.

    settings: smart_train.json as it goes up (the base as others may read it); verified: verified.json
    modules, pooling: of the sentence-transformers folder, where there is one
    figures: "metrics.json", "evaluation.json" and "facts.json", where there are any; log: of ``facts.read_log``
    recipe: the run's, or {}; trained: how many numbers were; picture: curve.png is beside it
    examples: a section of them, or ""
    """

    repo: str
    settings: dict[str, Any]
    verified: dict[str, Any]
    licence: str | None
    base_licence: str
    modules: list[dict[str, Any]] = field(default_factory=list)
    pooling: dict[str, Any] | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    trained: int = 0
    picture: bool = False
    examples: str = ""


def card(told: Told) -> str:
    """README.md of a published adapter.  Raises PublishError where the Hub could not read its metadata."""
    it = used(told.repo, told.settings, told.modules, told.pooling)
    figures = told.figures
    parts = [
        f"---\n{metadata(told)}\n---",
        f"# {told.repo.partition('/')[2]}",
        "One forward gives one pooled vector and a bag of token vectors; a query and a document are scored by either "
        "(pooled, late) or both (hybrid). Made with smart-train.",
        about(told.settings, told.verified, told.licence, told.base_licence),
        "## Use",
        use(it),
    ]
    if "metrics.json" in figures:
        parts += ["## Measured", measured(figures["metrics.json"], figures.get("evaluation.json", {}), it.vision)]
    if told.picture:
        parts += ["![loss and dev nDCG over steps](curve.png)"]
    if "facts.json" in figures:
        parts += ["## Data", data(figures["facts.json"])]
    parts += [told.examples] if told.examples else []
    if "facts.json" in figures or told.log or told.recipe:
        parts += ["## Training", training(figures.get("facts.json", {}), told.log, told.recipe, told.trained)]
    return _checked("\n\n".join(parts) + "\n")


def metadata(told: Told) -> str:
    """The front matter that the Hub shows and filters by."""
    from huggingface_hub import ModelCardData

    kind, on_hub = kind_of(told.settings), told.settings["fingerprint"] is None
    vision = told.settings["processing"].get("pixels") is not None
    task = "visual-document-retrieval" if vision else "sentence-similarity"
    tags = ["sentence-transformers", task, "feature-extraction", "smart-train", *(["peft"] if kind == "lora" else [])]
    source = told.figures.get("facts.json", {}).get("data", {})
    measured = results(told, task)
    more: dict[str, Any] = {"model_name": told.repo.partition("/")[2], "eval_results": measured} if measured else {}
    if on_hub:
        more |= {"base_model": told.settings["base"], "base_model_relation": RELATIONS[kind]}
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag=task,
        tags=[*tags, "late-interaction", "multi-vector"],
        datasets=[source["name"]] if source.get("kind") == "hub" else None,
        license=told.licence,
        **more,
    ).to_yaml()


def results(told: Told, task: str) -> list[Any]:
    """The adapter's own row as the model-index: for each mode the nDCGs, the deepest recall and MRR, with intervals."""
    from huggingface_hub import EvalResult

    rows = told.figures.get("metrics.json", {})
    own = next((rows[name] for name in OWN if name in rows), None)
    if own is None:
        return []
    source = told.figures.get("facts.json", {}).get("data", {})
    hosted = source.get("kind") == "hub"
    name = source.get("name", "not stated")
    depth = headline(rows)
    found = []
    for mode in MODES:
        names = own[mode]
        deepest = {max((n for n in names if n.startswith(f"{what}@")), key=_depth, default="") for what in DEEPEST}
        chosen = [name for name in names if name.startswith("ndcg@") or name in deepest]
        for measure in sorted(chosen, key=lambda name: name != depth):  # the headline first: a page shows few
            one, (what, _, cut) = names[measure], measure.partition("@")
            found.append(
                EvalResult(
                    task_type="information-retrieval",
                    task_name="visual document retrieval" if task.startswith("visual") else "information retrieval",
                    dataset_type=name if hosted else "private" if source else "unknown",
                    dataset_name=name,
                    dataset_config=source.get("subset"),
                    dataset_split="test",
                    dataset_revision=source.get("revision"),
                    metric_type=f"{what}_at_{cut}" if cut else what,
                    metric_name=f"{MEASURES.get(what, what)}{f'@{cut}' if cut else ''}, {mode}",
                    metric_value=round(one["value"], 6),
                    metric_args={"mode": mode, "interval_95": [round(one["low"], 6), round(one["high"], 6)]},
                )
            )
    return found


def _depth(measure: str) -> int:
    return int(measure.partition("@")[2])


def _checked(text: str) -> str:
    """The card, if the Hub's own reader makes the same metadata of it."""
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(text)
        again = ModelCard(str(read)).data.to_dict()
    except (ValueError, TypeError, KeyError) as error:
        raise PublishError(
            f"the card's metadata can't be read by the Hub's client ({error}); nothing was sent"
        ) from None
    if read.data.to_dict() != again:
        raise PublishError("the card's metadata are not what the Hub's client reads from it; nothing was sent")
    return text
