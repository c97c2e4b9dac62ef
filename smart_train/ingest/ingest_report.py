"""Report what was read and what was not: ``report.json``, and the summary at the end of a run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.ingest.source_files import Skipped

REPORT = "report.json"
COLUMNS = ("file", "id", "kind", "pages", "scanned", "ocr", "blank", "unread")
SHOWN = 10  # kinds and files in the summary; all are in report.json


@dataclass
class IngestReport:
    """Report of what a run of ``ingest`` read and left out.

    files: one row per file that was read: file, id, kind, pages, and how many pages are scanned, read by the OCR hook,
        blank (left out: nothing is on them) or unread (left out: no text, and images are off)
    skipped: files, and pages of files that were read, that were not taken
    duplicates: (file, the same file elsewhere)
    other: suffix -> number of files of kinds that are not read
    seconds, reused: time, and files whose pages were there; everything else depends on folder and settings alone
    """

    settings: dict[str, Any]
    files: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    other: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    reused: int = 0

    @property
    def pages(self) -> int:
        return self.total("pages")

    def total(self, column: str) -> int:
        return sum(row[column] for row in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``report.json``."""
        kinds = Counter[str]()
        for row in self.files:
            kinds[row["kind"]] += row["pages"]
        fresh = sum(row["pages"] for row in self.files if not row.get("reused"))
        rows = [{key: row[key] for key in COLUMNS} for row in self.files]  # in one order, whether stored before or not
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
                **{name: self.total(name) for name in ("scanned", "ocr", "blank", "unread")},
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
        """Write ``out/report.json``, in place of an earlier one."""
        update(out, self.as_dict(), fresh=True)

    def summary(self) -> str:
        """Return a few lines for a terminal: pages, what was left out by reason, and the first files left out."""
        report = self.as_dict()
        files, pages = report["files"], report["pages"]
        kinds = ", ".join(
            f"{pages[f'kept_{kind}']:,} {kind}" for kind in ("pdf", "image", "text") if pages[f"kept_{kind}"]
        )
        rate = report["run"]["pages_per_second"]
        lines = [
            f"{self.pages:,} pages of {files['read']:,} files ({kinds or 'nothing'}) in {self.seconds:.0f} s"
            + (f", {rate:g} pages/s" if rate else "")
            + (f"; {self.reused:,} files were read by an earlier run" if self.reused else "")
        ]
        if pages["scanned"]:
            lines.append(f"{pages['scanned']:,} pages are scans without text ({pages['ocr']:,} read by the OCR hook)")
        left_out = {"blank": "with nothing on them", "unread": "without text (images are off)"}
        lines += [f"{pages[name]:,} pages {why} are left out" for name, why in left_out.items() if pages[name]]
        if self.duplicates:
            lines.append(f"{len(self.duplicates):,} files are copies of others: each is kept once")
        if self.other:
            kinds = ", ".join(f"{number} {suffix}" for suffix, number in Counter(self.other).most_common(SHOWN))
            lines.append(f"{files['other']:,} files of kinds that are not read: {kinds}")
        if self.skipped:
            reasons = Counter(skip.reason for skip in self.skipped).most_common()
            lines.append(f"{len(self.skipped):,} skipped: " + ", ".join(f"{number} {why}" for why, number in reasons))
            lines += [f"  {printable(str(skip))}" for skip in self.skipped[:SHOWN]]
            if len(self.skipped) > SHOWN:
                lines.append(f"  and {len(self.skipped) - SHOWN} more in {REPORT}")
        return "\n".join(lines)


def printable(text: str) -> str:
    """Return a text on one line, with control characters escaped: a file's name must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def update(out: Path, parts: dict[str, Any], fresh: bool = False) -> None:
    """Set keys of ``out/report.json``, atomically; fresh: without the keys that were there."""
    path = out / REPORT
    before = {} if fresh or not path.is_file() else load_json(path.read_text(encoding="utf-8"))
    with replacing(path) as part:
        part.write_text(json.dumps(before | parts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
