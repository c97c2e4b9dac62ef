"""Write the model card of an adapter: how to load it, what was measured, on what and how it was trained.

A card says what was recorded and nothing else; a row that was not recorded is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smart_train.config.schema import HybridBlock
from smart_train.core.errors import PublishError
from smart_train.core.hub import LOCAL, PACKAGE
from smart_train.evaluation.calibration import at_edge
from smart_train.losses.similarity import hybrid_weights

MODES = ("pooled", "late", "hybrid")
KINDS = {
    "lora": "LoRA",
    "full": "every weight",
    "frozen": "the head alone, on a frozen base",
    "free": "nothing: the base's hidden states, read as they are",
}


RELATIONS = {"lora": "adapter", "frozen": "adapter", "free": "adapter", "full": "finetune"}
OWN = ("trained", "merged")  # the adapter's own row in metrics.json: of a run, of a merge
MEASURES = {"ndcg": "nDCG", "mrr": "MRR"}
DEEPEST = ("recall", "mrr")


@dataclass
class CardFacts:
    """Everything that a card is made of.

    settings: smart_train.json as it goes up (the base as others may read it); verified: verified.json
    modules, pooling: of the sentence-transformers folder, where there is one
    figures: the content of "metrics.json", "evaluation.json" and "facts.json", where they exist; log: of ``read_log``
    recipe: the run's, or {}; trained: number of trained weights; picture: curve.png is published too
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


def write_card(facts: CardFacts) -> str:
    """Return the model card (README.md) of an adapter. Raises PublishError if the Hub could not read its metadata."""
    it = _usage_of(facts)
    figures = facts.figures
    parts = [
        f"---\n{metadata(facts)}\n---",
        f"# {facts.repo.partition('/')[2]}",
        "One forward gives one pooled vector and a bag of token vectors; a query and a document are scored by either "
        "(pooled, late) or both (hybrid). Made with smart-train.",
        _summary(facts.settings, facts.verified, facts.licence, facts.base_licence),
        "## Use",
        _usage(it),
    ]
    if "metrics.json" in figures:
        parts += ["## Measured", _results(figures["metrics.json"], figures.get("evaluation.json", {}), it.vision)]
    if facts.picture:
        parts += ["![loss and dev nDCG over steps](curve.png)"]
    if "facts.json" in figures:
        parts += ["## Data", _data(figures["facts.json"])]
    parts += [facts.examples] if facts.examples else []
    if "facts.json" in figures or facts.log or facts.recipe:
        parts += ["## Training", _training(figures.get("facts.json", {}), facts.log, facts.recipe, facts.trained)]
    return _checked("\n\n".join(parts) + "\n")


def metadata(facts: CardFacts) -> str:
    """Return the YAML metadata that the Hub shows and filters by."""
    from huggingface_hub import ModelCardData

    kind, on_hub = kind_of(facts.settings), facts.settings["fingerprint"] is None
    vision = facts.settings["processing"].get("pixels") is not None
    task = "visual-document-retrieval" if vision else "sentence-similarity"
    tags = ["sentence-transformers", task, "feature-extraction", "smart-train", *(["peft"] if kind == "lora" else [])]
    source = facts.figures.get("facts.json", {}).get("data", {})
    measured = results(facts, task)
    more: dict[str, Any] = {"model_name": facts.repo.partition("/")[2], "eval_results": measured} if measured else {}
    if on_hub:
        more |= {"base_model": facts.settings["base"], "base_model_relation": RELATIONS[kind]}
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag=task,
        tags=[*tags, "late-interaction", "multi-vector"],
        datasets=[source["name"]] if source.get("kind") == "hub" else None,
        license=facts.licence,
        **more,
    ).to_yaml()


def results(facts: CardFacts, task: str) -> list[Any]:
    """Return the model-index: for each mode the nDCGs, and recall and MRR at the largest cut-off, with intervals."""
    from huggingface_hub import EvalResult

    rows = facts.figures.get("metrics.json", {})
    own = next((rows[name] for name in OWN if name in rows), None)
    if own is None:
        return []
    source = facts.figures.get("facts.json", {}).get("data", {})
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
    """Return the card if the Hub's own reader reads the same metadata from it. Raises PublishError otherwise."""
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(text)
        again = ModelCard(str(read)).data.to_dict()
    except (ValueError, TypeError, KeyError) as error:
        raise PublishError(
            f"the card's metadata cannot be read by the Hub's client ({error}); nothing was sent"
        ) from None
    if read.data.to_dict() != again:
        raise PublishError("the card's metadata are not what the Hub's client reads from it; nothing was sent")
    return text


# Sections -------------------------------------------------------------------------------------------------------------


def table(rows: Mapping[str, str]) -> str:
    """Return a Markdown table of two columns, without a header."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])


def grid(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table with a header."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _summary(settings: dict[str, Any], verified: dict[str, Any], licence: str | None, base_licence: str) -> str:
    late, hybrid = settings["late"], settings["late"]["hybrid"]
    kind = kind_of(settings)
    base = f"`{settings['base']}`"
    if settings["commit"]:
        base += f" at commit `{settings['commit']}`"
    if settings["base"].startswith(LOCAL):
        base += ": a private folder that is not published. Without it this adapter can't be used" * (kind != "full")
    width = late["dim"] or settings["hidden_size"]
    return table(
        {
            "Base": base,
            "Licence": f"{licence or 'not stated'}; of the base: {base_licence}",
            "Trained": _what_was_trained(settings),
            "Token vectors": f"layer {late['layer']}, head {_name(late['head'])}, {width} wide",
            "Hybrid score": _hybrid(hybrid),
            "Verified": f"saved, loaded again and compared on {verified['rows']} rows: {_differences(verified)}",
        }
    )


def _hybrid(block: dict[str, Any]) -> str:
    """Return how pooled and late scores are added, with the weights that scores have (their sum is 1)."""
    pooled, late = hybrid_weights(HybridBlock(**block))
    scaled = ", both standardised" if block.get("scaling") == "standardised" else ""
    edge = at_edge(block.get("late", 1.0))
    return f"{pooled:.3g} x pooled + {late:.3g} x late{scaled}" + (f" ({edge})" if edge else "")


def _name(component: Any) -> str:
    """Return the name of a head or token filter as smart_train.json writes it."""
    return component["type"] if isinstance(component, dict) else str(component)


def _what_was_trained(settings: dict[str, Any]) -> str:
    """Return what was trained, and how it was exported or merged."""
    export, late = settings.get("export", {}), settings["late"]
    adapter = export.get("adapter") or settings["adapter"]
    kind = adapter["kind"] if adapter else "free"
    text = KINDS[kind]
    if adapter and kind == "lora":
        text += f", r = {adapter['r']}, alpha = {adapter['alpha']}" + ", vision tower too" * bool(adapter["vision"])
    text += f" and a head ({_name(late['head'])})" if kind in ("lora", "full") and late["head"] != "none" else ""
    bits = settings["model"].get("quantisation", "none")
    text += f", over a base held in {bits}" if bits != "none" else ""
    done = {"merged": "; added to the base's weights", "multi-vector": "; added to the weights, token vectors alone"}
    done["merge"] = f"; {len(export.get('adapters', []))} adapters in one"
    return text + done.get(export.get("kind", ""), "")


def _differences(verified: dict[str, Any]) -> str:
    """Return the largest differences of unit vectors. (A multi-vector export has no pooled ones.)"""
    views = {view: verified.get(f"largest_{view}_difference") for view in ("pooled", "token")}
    text = (
        f"{view} vectors {f'within {most:.0e}' if most else 'equal'}"
        for view, most in views.items()
        if most is not None
    )
    return ", ".join(text)


def kind_of(settings: dict[str, Any]) -> str:
    """Return lora, full, frozen, or free (no adapter)."""
    return settings["adapter"]["kind"] if settings["adapter"] else "free"


# Measured -------------------------------------------------------------------------------------------------------------


def headline(metrics: dict[str, Any]) -> str:
    """Return ndcg@10 if it was measured, else the nDCG of the largest cut-off."""
    names = {name for row in metrics.values() for mode in row.values() for name in mode if name.startswith("ndcg@")}
    return "ndcg@10" if "ndcg@10" in names else max(names, key=lambda name: int(name.removeprefix("ndcg@")))


def _results(metrics: dict[str, Any], evaluation: dict[str, Any], page: bool) -> str:
    """Return rows for the base and the trained encoder with intervals, sizes, and paired differences with p.

    page: a document is a page image
    """
    name = headline(metrics)
    rows = []
    for row, modes in metrics.items():
        cells = [modes[mode][name] for mode in MODES]
        rows.append([row, *(f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in cells)])
    parts = [grid([f"{name.replace('ndcg', 'nDCG')} (95 % interval)", *MODES], rows)]
    for row, one in evaluation.get("rows", {}).items():
        what = f"{one['mb_per_document']:.3g} MB of vectors a {'page' if page else 'document'} (float16)"
        weights = one.get("hybrid")
        text = f"; hybrid = {_hybrid(weights)}" if weights else ""
        parts.append(f"{row}: {one['queries']} queries, {one['documents']} documents, {what}{text}.")
    differences = evaluation.get("differences", {})
    if differences:
        rows = [
            [what, f"{one['value']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]", f"{one['p']:.3f}"]
            for what, one in differences.items()
        ]
        parts.append(grid(["paired difference over the same queries", "95 % interval", "p"], rows))
    parts.append(
        "nDCG has linear gain; `metrics.json` has every measure. `base` is the untouched base, read the same way."
    )
    return "\n\n".join(parts)


# Data and training ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "queries": "queries",
    "documents": "documents",
    "pages": "of them page images",
    "files": "files",
    "pairs": "pairs",
    "negatives": "hard negatives",
    "queries_with_scores": "queries with a teacher's scores",
    "rows": "rows, read while training",
}


def _data(facts: dict[str, Any]) -> str:
    """Return where the data came from (a Hub id, or a folder's name), and counts of each split."""
    source = facts["data"]
    name = {
        "pydocs": "docstrings of the installed Python packages: summary -> body",
        "local": f"a folder that is not published, `{LOCAL}{source['name']}`",
        "hub": f"`{source['name']}`",
    }[source["kind"]]
    name += "".join(f", {key} `{source[key]}`" for key in ("subset", "revision") if key in source)
    splits = source["splits"]
    shown = [key for key in COLUMNS if any(key in side for side in splits.values())]
    # Of a split that was streamed nothing is known but, of Parquet files, the rows.
    rest = {side: "0" if "queries" in counted else "not counted" for side, counted in splits.items()}
    rows = [
        [side, *(f"{counted[key]:,}" if key in counted else rest[side] for key in shown)]
        for side, counted in splits.items()
    ]
    return f"From {name}.\n\n" + grid(["", *(COLUMNS[key] for key in shown)], rows)


def _training(facts: dict[str, Any], log: dict[str, Any], recipe: dict[str, Any], trained: int) -> str:
    """Return devices, steps, time and memory, and the keys of the recipe that matter most.

    log: of ``read_log``; trained: number of trained weights, 0 = not known
    """
    rows: dict[str, str] = {}
    if "machine" in facts:
        machine = facts["machine"]
        rows["On"] = f"{machine['processes']} x {machine['device']}" + (
            f" ({machine['cores']} cores)" if machine["kind"] == "cpu" else ""
        )
        rows["Engine"] = machine["engine"]
    if log:
        rows["Steps"] = f"{log['step']:,}" + (f", {log['epoch']:g} epochs" if "epoch" in log else "")
        rows["Time"] = f"{duration(log['seconds'])}, evaluations included" + (
            f", in {log['parts']} parts" if log["parts"] > 1 else ""
        )
        rows |= {"Memory": f"{log['memory/gib']:.3g} GiB at the most, of one process"} if "memory/gib" in log else {}
    if trained:
        rows["Trained numbers"] = f"{trained:,}"
    return table({**rows, **_recipe(recipe)}) + "\n\n`recipe.yaml` has every key." * bool(recipe)


def _recipe(recipe: dict[str, Any]) -> dict[str, str]:
    if not recipe:
        return {}
    objective, settings, data = recipe["objective"], recipe["training"], recipe["data"]
    blocks = {mode: objective[mode] for mode in MODES if mode in objective}  # one that objective.terms has is not saved
    terms = [f"{mode} {one['weight']:g} (tau {one['temperature']:g})" for mode, one in blocks.items() if one["weight"]]
    terms += [_term(entry) for entry in objective.get("terms", [])]
    rows = {"Loss": f"{objective['loss']}: " + ", ".join(terms)}
    a_process = settings.get("per_device_train_batch_size")
    batch = objective["batch"] and f"{objective['batch']} pairs over all processes, by gradient caching"
    rows |= {"Batch": str(batch or f"{a_process} pairs a process")} if batch or a_process else {}
    if data["negatives"]:
        rows["Hard negatives"] = f"{data['negatives']} a pair"
    lengths = [f"{side} {data[f'{side}_tokens']}" for side in ("query", "document") if data.get(f"{side}_tokens")]
    rows |= {"Cut while training, in tokens": ", ".join(lengths)} if lengths else {}
    names = ("learning_rate", "head_learning_rate", "lr_scheduler_type", "weight_decay", "bf16", "fp16", "seed")
    text = [f"{name} {settings[name]}" for name in names if settings.get(name) is not None]
    return rows | ({"Optimiser": ", ".join(text)} if text else {})


def _term(entry: str | dict[str, Any]) -> str:
    """Return an entry of objective.terms in words; its code is not imported."""
    if isinstance(entry, str):
        return entry
    temperature = f" (tau {entry['temperature']})" if "temperature" in entry else ""
    return f"{entry.get('name', entry['type'])} {entry.get('weight', 1)}{temperature}"


def read_log(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize log.jsonl: last step and epoch, largest memory, seconds over all parts of a resumed run.

    A part begins where the clock of the lines does; steps that a resumed run did again count as often as they ran.
    """
    if not lines:
        return {}
    clocks = [line["seconds"] for line in lines if "seconds" in line]
    ends = [a for a, b in zip(clocks, clocks[1:], strict=False) if b < a] + clocks[-1:]
    found: dict[str, Any] = {"step": max(line["step"] for line in lines), "seconds": sum(ends), "parts": len(ends)}
    epochs = [line["epoch"] for line in lines if "epoch" in line]
    memory = [line["memory/gib"] for line in lines if isinstance(line.get("memory/gib"), int | float)]
    return found | ({"epoch": epochs[-1]} if epochs else {}) | ({"memory/gib": max(memory)} if memory else {})


def duration(seconds: float) -> str:
    """Return seconds as text, to the second, or to the minute for hours: 42 s, 8 min 5 s, 3 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


# Use: programs that run as they stand ---------------------------------------------------------------------------------

HERE = "FOLDER OF THE BASE"
FEW_BITS = "The base was held in 4 bits while it was trained; on top of the whole base it has other vectors."
SIDES = ("query", "document")
POOLED = {  # pooling mode -> how it is taken from states [rows, tokens, D] and mask [rows, tokens, 1]
    "mean": "(states * mask).sum(1) / mask.sum(1)",
    "cls": "states[torch.arange(len(states)), mask[..., 0].argmax(1)]",
    "lasttoken": "states[torch.arange(len(states)), states.shape[1] - 1 - mask[..., 0].flip(1).argmax(1)]",
}


@dataclass
class _Usage:
    """What the programs of a card depend on.

    repo: where the adapter is; base: as others may read it; commit: of a Hub base; kind: lora, full or frozen
    pooling: mode of the saved folder's pooling, None where pooled vectors take more than that (a Dense module, a chat
    template, pictures, a prompt that is not pooled); limits: longest query and document in tokens, of the adapter or
    else of the base; own: whether they are the adapter's; chat: contents go through a chat template; prompts: of query
    and document
    export: merged, multi-vector or None; quantised: the base was held in 4 bits, and must be again
    extensions: heads and token filters of other packages, which a reader has to trust
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
    extensions: tuple[str, ...] = ()

    @property
    def on_hub(self) -> bool:
        return not self.base.startswith((LOCAL, PACKAGE))


def _usage_of(facts: CardFacts) -> _Usage:
    settings, modules, pooling = facts.settings, facts.modules, facts.pooling
    processing = settings["processing"]
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    vision = processing.get("pixels") is not None
    by_hand = not vision and processing.get("chat_template") is None and kinds[:2] == ["Transformer", "Pooling"]
    plain = by_hand and set(kinds[2:]) <= {"Normalize"}
    prompts = {side: settings["model"][f"{side}_prompt"] or "" for side in SIDES}
    # A pooling that leaves the prompt out is more than one line.
    plain = plain and ((pooling or {}).get("include_prompt", True) or not any(prompts.values()))
    mode = (pooling or {}).get("pooling_mode") if plain else None
    return _Usage(
        repo=facts.repo,
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
        extensions=tuple(_extensions(settings["late"])),
    )


def _extensions(late: dict[str, Any]) -> list[str]:
    from smart_train.models.heads import HEADS
    from smart_train.models.token_filters import TOKEN_FILTERS

    known = {*HEADS.builtin, *TOKEN_FILTERS.builtin}
    return [name for name in map(_name, [late["head"], *late.get("keep", [])]) if name not in known]


def _usage(it: _Usage) -> str:
    """Return the section, without its heading."""
    install = "pip install smart-train"
    if it.base.startswith(PACKAGE):
        install += " " + it.base.removeprefix(PACKAGE).partition("/")[0].replace("_", "-")
    install += " bitsandbytes" * it.quantised
    if it.export == "multi-vector":
        return "\n\n".join(_multi_vector(it, it.repo))
    parts = [f"`{install}`", *_ours(it), *_plain(it), *_by_hand(it), *_ranked(it)]
    if it.kind == "lora" and not it.extensions:  # MultiVectorEncoder has no modules for those
        parts += ["Token vectors with sentence-transformers alone, after the adapter was made a model of its own:"]
        parts += _exported(it)
    return "\n\n".join(parts)


def _code(*lines: str, language: str = "python") -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _contents(it: _Usage) -> tuple[str, str]:
    """Return (documents as program text, a comment on them)."""
    if it.vision:
        return '["a passage", "another passage"]', "  # or pathlib.Path of a page's image, or PIL images"
    return '["a passage", "another passage"]', ""


def _ours(it: _Usage) -> list[str]:
    needed = it.base.startswith(LOCAL) and it.kind != "full"  # whole weights are their own base
    options = f', base="{HERE}"' if needed else ""
    options += ", trust_remote_code=True" if it.trust else ""
    options += f", trust_extensions={list(it.extensions)}" if it.extensions else ""
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


def _program(it: _Usage, imports: list[str], *lines: str) -> str:
    """Return a program that defines ``base``, for loaders that do not know package:NAME/FOLDER."""
    if not it.base.startswith(PACKAGE):
        return _code(*imports, "", f'base = "{HERE if it.base.startswith(LOCAL) else it.base}"', *lines)
    package, _, folder = it.base.removeprefix(PACKAGE).partition("/")
    name = package.replace("-", "_")
    place = f"base = str(Path({name}.__file__).parent" + (f' / "{folder}")' if folder else ")")
    return _code("from pathlib import Path", "", f"import {name}", *imports, "", place, *lines)


def _pinned(it: _Usage) -> str:
    options = f', revision="{it.commit}"' if it.commit else ""
    return options + (", trust_remote_code=True" if it.trust else "")


def _plain(it: _Usage) -> list[str]:
    """Pooled vectors with sentence-transformers, and where they differ there."""
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


def _encoding(it: _Usage, prompts: dict[str, str]) -> list[str]:
    """Return lines that encode a query and documents with the adapter's limits, and print the scores."""
    lines = []
    for side, contents in (("query", '["a question"]'), ("document", _contents(it)[0])):
        if it.own and not it.chat:
            lines.append(f"model.max_seq_length = {it.limits[side]}")
        prompt = f", prompt={prompts[side]!r}" if side in prompts else ""
        name = "queries" if side == "query" else "documents"
        lines.append(f"{name} = model.encode_{side}({contents}{prompt})")
    return [*lines, "print(model.similarity(queries, documents))"]


def _by_hand(it: _Usage) -> list[str]:
    """With peft and transformers, and the pooling where that is one line."""
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


def _pinned_own(it: _Usage) -> str:
    return ", trust_remote_code=True" if it.trust else ""


def _multi_vector(it: _Usage, place: str) -> list[str]:
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


def _exported(it: _Usage) -> list[str]:
    base = f' --base "{HERE}"' if it.base.startswith(LOCAL) else ""
    trust = " --trust-remote-code" if it.trust else ""
    line = f"smart-train export {it.repo} --as multi-vector --output late{base}{trust}"
    return [_code(line, language="bash"), *_multi_vector(it, "late")]


def _ranked(it: _Usage) -> list[str]:
    base = it.repo if it.kind == "full" else HERE if it.base.startswith(LOCAL) else it.base
    trust = " --trust-remote-code" if it.trust else ""
    trust += "".join(f" --trust-extension {name}" for name in it.extensions)
    line = f'smart-train evaluate DATA --model "{base}" --adapter {it.repo} --output figures{trust}'
    return [
        "On the command line, over a folder of your own with a corpus, queries and qrels:",
        _code(line, language="bash"),
    ]
