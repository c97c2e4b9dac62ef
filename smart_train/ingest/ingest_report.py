"""What was read and what was not: ``report.json`` and the lines at the end of a run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.ingest.folders import Skip

REPORT = "report.json"
COLUMNS = ("file", "id", "kind", "pages", "scanned", "ocr", "blank", "unread")
MOST = 10  # reasons and files named in the summary; all are in the file


@dataclass
class Report:
    """files: one row per file that was read: file, id, kind, pages, and how many of them are scanned, read by the OCR
    hook, blank (left out: nothing is on them) or unread (left out: no text, and images are off).
    skipped: files, and pages of files that were read, that were not taken.  duplicates: (file, the same file
    elsewhere).  other: suffix -> number of files of kinds that are not read.
    seconds, reused: of this run; everything else depends on the folder and the settings alone.
    """

    settings: dict[str, Any]
    files: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    other: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    reused: int = 0

    @property
    def pages(self) -> int:
        return self.total("pages")

    def total(self, what: str) -> int:
        return sum(row[what] for row in self.files)

    def as_dict(self) -> dict[str, Any]:
        kinds = Counter[str]()
        for row in self.files:
            kinds[row["kind"]] += row["pages"]
        fresh = sum(row["pages"] for row in self.files if not row.get("reused"))
        rows = [{key: row[key] for key in COLUMNS} for row in self.files]  # in one order, stored before or not
        return {
            "files": {
                "read": len(self.files),
                "skipped": sum(skip.page is None for skip in self.skipped),
                "duplicates": len(self.duplicates),
                "other": sum(self.other.values()),
            },
            "pages": {
                "kept": self.pages,
                **{f"kept_{kind}": kinds[kind] for kind in ("pdf", "image", "text")},
                **{what: self.total(what) for what in ("scanned", "ocr", "blank", "unread")},
                "skipped": sum(skip.page is not None for skip in self.skipped),
            },
            "skipped": [{k: v for k, v in asdict(skip).items() if v not in ("", None)} for skip in self.skipped],
            "duplicates": [{"file": file, "of": of} for file, of in self.duplicates],
            "other": self.other,
            "read": rows,
            "settings": self.settings,
            "run": {
                "seconds": round(self.seconds, 1),
                "files_reused": self.reused,
                "pages_per_second": round(fresh / self.seconds, 1) if self.seconds else None,
            },
        }

    def write(self, out: Path) -> None:
        update(out, self.as_dict(), fresh=True)

    def summary(self) -> str:
        """A few lines: pages, what was left out by reason, and the first files with theirs."""
        told = self.as_dict()
        files, pages = told["files"], told["pages"]
        kinds = ", ".join(
            f"{pages[f'kept_{kind}']:,} {kind}" for kind in ("pdf", "image", "text") if pages[f"kept_{kind}"]
        )
        rate = told["run"]["pages_per_second"]
        lines = [
            f"{self.pages:,} pages of {files['read']:,} files ({kinds or 'nothing'}) in {self.seconds:.0f} s"
            + (f", {rate:g} pages/s" if rate else "")
            + (f"; {self.reused:,} files were read before" if self.reused else "")
        ]
        if pages["scanned"]:
            lines.append(f"{pages['scanned']:,} pages are scans without text ({pages['ocr']:,} read by the OCR hook)")
        left = {"blank": "with nothing on them", "unread": "without text, as images are off,"}
        lines += [f"{pages[what]:,} pages {why} are left out" for what, why in left.items() if pages[what]]
        if self.duplicates:
            lines.append(f"{len(self.duplicates):,} files are there twice: kept once")
        if self.other:
            kinds = ", ".join(f"{number} {suffix}" for suffix, number in Counter(self.other).most_common(MOST))
            lines.append(f"{files['other']:,} files of kinds that are not read: {kinds}")
        if self.skipped:
            reasons = Counter(skip.reason for skip in self.skipped).most_common()
            lines.append(f"{len(self.skipped):,} skipped: " + ", ".join(f"{number} {why}" for why, number in reasons))
            lines += [f"  {printable(str(skip))}" for skip in self.skipped[:MOST]]
            if len(self.skipped) > MOST:
                lines.append(f"  and {len(self.skipped) - MOST} more in {REPORT}")
        return "\n".join(lines)


def printable(text: str) -> str:
    """Text on one line that no file's name can use to move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def update(out: Path, parts: dict[str, Any], fresh: bool = False) -> None:
    """Adds keys to ``out/report.json``, replacing those of the same name (fresh: all); whole or not at all."""
    path = out / REPORT
    told = {} if fresh or not path.is_file() else json.loads(path.read_text(encoding="utf-8"))
    with replacing(path) as part:
        part.write_text(json.dumps(told | parts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
