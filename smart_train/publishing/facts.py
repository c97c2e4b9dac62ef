"""The tables of a card: what the adapter is, what was measured, what it was trained on and how.  Only what is recorded.

Knows: smart_train.json, verified.json, metrics.json, evaluation.json, facts.json, log.jsonl and the recipe, as JSON.
Does not know: models, files that hold texts, the Hub.
A figure that was not recorded is left out with its row, never made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smart_train.bases import LOCAL

MODES = ("pooled", "late", "hybrid")
KINDS = {
    "lora": "LoRA",
    "full": "every weight",
    "frozen": "the head alone, on a frozen base",
    "free": "nothing: the base's hidden states, read as they are",
}


def table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])


def grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def about(settings: dict[str, Any], verified: dict[str, Any], licence: str | None, base_licence: str) -> str:
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
            "Trained": _trained(settings),
            "Token vectors": f"layer {late['layer']}, head {late['head']}, {width} wide",
            "Hybrid score": f"{hybrid['pooled']:g} x pooled + {hybrid['late']:g} x late"
            + (", both standardised" if hybrid["scaling"] == "standardised" else ""),
            "Verified": f"saved, loaded again and compared on {verified['rows']} rows: {_differences(verified)}",
        }
    )


def _trained(settings: dict[str, Any]) -> str:
    """What learned, and what has been done to it since."""
    export, late = settings.get("export", {}), settings["late"]
    adapter = export.get("adapter") or settings["adapter"]
    kind = adapter["kind"] if adapter else "free"
    told = KINDS[kind]
    if adapter and kind == "lora":
        told += f", r = {adapter['r']}, alpha = {adapter['alpha']}" + ", vision tower too" * bool(adapter["vision"])
    told += f" and a head ({late['head']})" if kind in ("lora", "full") and late["head"] != "none" else ""
    bits = settings["model"].get("quantisation", "none")
    told += f", over a base held in {bits}" if bits != "none" else ""
    done = {"merged": "; added to the base's weights", "multi-vector": "; added to the weights, token vectors alone"}
    done["merge"] = f"; {len(export.get('adapters', []))} adapters in one"
    return told + done.get(export.get("kind", ""), "")


def _differences(verified: dict[str, Any]) -> str:
    """Of vectors of length 1.  (A multi-vector export has no pooled ones.)"""
    views = {view: verified.get(f"largest_{view}_difference") for view in ("pooled", "token")}
    told = (
        f"{view} vectors {f'within {most:.0e}' if most else 'equal'}"
        for view, most in views.items()
        if most is not None
    )
    return ", ".join(told)


def kind_of(settings: dict[str, Any]) -> str:
    """lora, full, frozen, or free: no adapter at all."""
    return settings["adapter"]["kind"] if settings["adapter"] else "free"


# Measured -------------------------------------------------------------------------------------------------------------


def headline(metrics: dict[str, Any]) -> str:
    """nDCG@10 where it was measured, else the deepest nDCG."""
    names = {name for row in metrics.values() for mode in row.values() for name in mode if name.startswith("ndcg@")}
    return "ndcg@10" if "ndcg@10" in names else max(names, key=lambda name: int(name.removeprefix("ndcg@")))


def measured(metrics: dict[str, Any], evaluation: dict[str, Any], page: bool) -> str:
    """A row each for the base and the trained encoder, with intervals; sizes; the paired differences with p.

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
        told = f"; hybrid = {weights['pooled']:g} x pooled + {weights['late']:g} x late" if weights else ""
        parts.append(f"{row}: {one['queries']} queries, {one['documents']} documents, {what}{told}.")
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
}


def data(facts: dict[str, Any]) -> str:
    """Counts of each side; where it came from: a Hub dataset's id, or a folder's own name."""
    source = facts["data"]
    name = {
        "pydocs": "docstrings of the installed Python packages: summary -> body",
        "local": f"a folder that is not published, `{LOCAL}{source['name']}`",
        "hub": f"`{source['name']}`",
    }[source["kind"]]
    name += "".join(f", {key} `{source[key]}`" for key in ("subset", "revision") if key in source)
    splits = source["splits"]
    shown = [key for key in COLUMNS if any(key in side for side in splits.values())]
    rows = [[side, *(f"{counted.get(key, 0):,}" for key in shown)] for side, counted in splits.items()]
    return f"From {name}.\n\n" + grid(["", *(COLUMNS[key] for key in shown)], rows)


def training(facts: dict[str, Any], log: dict[str, Any], recipe: dict[str, Any], trained: int) -> str:
    """What it took, and the keys of the recipe that matter most.

    log: of ``read_log``; trained: numbers that were, 0 = not known
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
    objective, settings, sides = recipe["objective"], recipe["training"], recipe["data"]
    terms = [f"{mode} {objective[mode]['weight']:g} (tau {objective[mode]['temperature']:g})" for mode in MODES]
    terms = [term for mode, term in zip(MODES, terms, strict=True) if objective[mode]["weight"]]
    rows = {"Loss": f"{objective['loss']}: " + ", ".join(terms)}
    a_process = settings.get("per_device_train_batch_size")
    batch = objective["batch"] and f"{objective['batch']} pairs over all processes, by gradient caching"
    rows |= {"Batch": str(batch or f"{a_process} pairs a process")} if batch or a_process else {}
    if sides["negatives"]:
        rows["Hard negatives"] = f"{sides['negatives']} a pair"
    lengths = [f"{side} {sides[f'{side}_tokens']}" for side in ("query", "document") if sides.get(f"{side}_tokens")]
    rows |= {"Cut while training, in tokens": ", ".join(lengths)} if lengths else {}
    names = ("learning_rate", "head_learning_rate", "lr_scheduler_type", "weight_decay", "bf16", "fp16", "seed")
    told = [f"{name} {settings[name]}" for name in names if settings.get(name) is not None]
    return rows | ({"Optimiser": ", ".join(told)} if told else {})


def read_log(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What log.jsonl tells of the whole: last step and epoch, largest memory, seconds over all parts of a resumed run.

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
    """To a hundredth of itself at the least: 42 s, 8 min 5 s, 3 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
