"""MTEB tasks on local folders: MTEB's own classes and loaders, with a folder where a Hub repository stood."""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets

MODULES = {
    "reading": ["csv", "json", "tomllib", "configparser", "html.parser"],
    "files": ["pathlib", "shutil", "glob", "tempfile", "fnmatch", "linecache"],
    "numbers": ["statistics", "random", "fractions", "decimal", "bisect", "heapq"],
    "processes": ["subprocess", "threading", "queue", "selectors", "signal", "sched"],
    "text": ["textwrap", "difflib", "string", "pprint", "gettext"],
    "network": ["http.client", "ftplib", "smtplib", "imaplib", "ipaddress", "urllib.robotparser"],
}
GROUP = {name: group for group, names in MODULES.items() for name in names}


def documentation() -> dict[str, tuple[str, str]]:
    """Module -> (first line of its documentation, the rest and its functions' first lines): real text, everywhere."""
    found = {}
    for name in GROUP:
        module = import_module(name)
        head, _, rest = (inspect.getdoc(module) or name).strip().partition("\n")
        members = [each for key, each in sorted(vars(module).items()) if not key.startswith("_") and callable(each)]
        firsts = [(inspect.getdoc(each) or "").strip().partition("\n")[0] for each in members[:12]]
        found[name] = (head.strip(), f"{rest.strip()} {' '.join(firsts)}"[:240].strip() or name)
    return found


def judgements() -> list[tuple[str, str, int]]:
    """(query, document, grade): 2 for a module's own text, 1 for two others of its group."""
    rows = []
    for name, group in GROUP.items():
        own = MODULES[group]
        near = [own[(own.index(name) + step) % len(own)] for step in (1, 2)]
        rows += [(f"q-{name}", f"d-{name}", 2), *((f"q-{name}", f"d-{other}", 1) for other in near)]
    return rows


def write_repository(folder: Path, tables: dict[str, list[dict[str, Any]]], split: str, images: bool = False) -> Path:
    """FOLDER as a dataset repository: one configuration a table, each a parquet file, named in README.md."""
    lines = ["---", "configs:"]
    for name, rows in tables.items():
        table = datasets.Dataset.from_list(rows)
        if images and "image" in table.column_names:
            table = table.cast_column("image", datasets.Image())
        path = folder / name / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(path))
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder


def write_text(folder: Path, split: str, given: int = 0) -> Path:
    """The layout of NanoBEIR and BEIR at MTEB: corpus, queries, default; with ``given``, top_ranked too."""
    texts = documentation()
    tables: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"_id": f"d-{name}", "title": name, "text": body} for name, (_, body) in texts.items()],
        "queries": [{"_id": f"q-{name}", "text": head} for name, (head, _) in texts.items()],
        "default": [{"query-id": q, "corpus-id": d, "score": grade} for q, d, grade in judgements()],
    }
    if given:
        names = list(texts)[:-2]  # the last two are nobody's candidates
        tables["top_ranked"] = [
            {
                "query-id": f"q-{name}",
                "corpus-ids": [f"d-{names[(at + 5 * step) % len(names)]}" for step in range(given)],
            }
            for at, name in enumerate(texts)
        ]
    return write_repository(folder, tables, split)


def write_pages(folder: Path, pages: int = 12) -> Path:
    """The layout of ViDoRe v1 and v2: corpus (corpus-id, image), queries (query-id, query, language), qrels."""
    import tiny_data

    rows = [row for row in tiny_data.page_rows() if int(str(row["image_filename"])[-6:-4]) < pages]
    ids = sorted({str(row["image_filename"]) for row in rows})
    shown = {str(row["image_filename"]): row["image"] for row in rows}
    tables: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"corpus-id": at, "image": _png(shown[name])} for at, name in enumerate(ids)],
        "queries": [
            {"query-id": at, "query": row["query"], "language": ("english", "french")[at % 2]}
            for at, row in enumerate(rows)
        ],
        "qrels": [
            {"query-id": at, "corpus-id": ids.index(str(row["image_filename"])), "score": 1}
            for at, row in enumerate(rows)
        ],
    }
    return write_repository(folder, tables, "test", images=True)


def write_pages_by_language(folder: Path, pages: int = 6, texts: bool = False) -> Path:
    """The layout of ViDoRe v3: corpus, queries and qrels of each language; ``texts``: pages have one, too."""
    import tiny_data

    rows = [row for row in tiny_data.page_rows() if int(str(row["image_filename"])[-6:-4]) < pages]
    names = sorted({str(row["image_filename"]) for row in rows})
    shown = {str(row["image_filename"]): _png(row["image"]) for row in rows}
    tables: dict[str, list[dict[str, Any]]] = {}
    for at, language in enumerate(("english", "french")):
        own = rows[at::2]
        text = [{"text": f"page {name}"} if texts else {} for name in names]
        tables |= {
            f"{language}-corpus": [{"_id": name, "image": shown[name], **text[n]} for n, name in enumerate(names)],
            f"{language}-queries": [{"_id": f"q{n}", "text": row["query"]} for n, row in enumerate(own)],
            f"{language}-qrels": [
                {"query-id": f"q{n}", "corpus-id": row["image_filename"], "score": 1} for n, row in enumerate(own)
            ],
        }
    return write_repository(folder, tables, "test", images=True)


def _png(image: Any) -> dict[str, Any]:
    import io

    data = io.BytesIO()
    image.save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def local(task: type, folder: Path, **changes: Any) -> Any:
    """An object of one of MTEB's tasks that reads ``folder`` with the loader that it has.

    MTEB rounds what it reports to 5 digits; ``per_query`` has what trec_eval gave it: query -> measure -> value,
    ``of_subset`` the same of each language.
    """

    def keep(self: Any, scores: Any, *others: Any, **more: Any) -> dict[str, float]:
        self.per_query = scores
        self.of_subset = {**getattr(self, "of_subset", {}), more["hf_subset"]: scores}
        return {}

    changes["dataset"] = {"path": str(folder), "revision": "local"}
    metadata = task.metadata.model_copy(update=changes)
    kept = {"metadata": metadata}
    if hasattr(task, "task_specific_scores"):
        kept["task_specific_scores"] = keep
    return type(f"Local{task.__name__}", (task,), kept)()


def scores_of(result: Any, name: str) -> float:
    """One figure of one task's only split and subset."""
    (rows,) = result.task_results[0].scores.values()
    (row,) = rows
    return float(row[name])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
