"""Hold the questions of a corpus, with the text that they were taken from and the counts of what was dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Question:
    """One query and the page that answers it.

    text: the query, as a user would type it
    document: id of the page that answers it
    rule: where it comes from: outline, title, heading, question, caption, definition; or vlm: fact, vlm: figure ...
    source: the words of the page that it was taken from, unchanged; "" where a model wrote it
    file, page: file and page number of that page, for people
    """

    text: str
    document: str
    rule: str
    source: str
    file: str
    page: int


@dataclass
class QuestionSet:
    """The questions of a corpus, in the order of its pages.

    masked: page id -> text of the page without the words that its questions were taken from; other pages keep theirs
    counts: "RULE" -> questions kept, and "RULE: REASON" -> candidates dropped for that reason
    """

    questions: list[Question] = field(default_factory=list)
    masked: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def kept(self) -> dict[str, int]:
        """Count the questions of each rule."""
        return dict(sorted(Counter(question.rule for question in self.questions).items()))

    def dropped(self) -> dict[str, int]:
        """Count the dropped candidates of each reason, over all rules, most frequent first."""
        total: Counter[str] = Counter()
        for name, count in self.counts.items():
            rule, _, reason = name.rpartition(": ")
            if rule and name not in self.kept():
                total[reason] += count
        return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0])))

    def summary(self) -> str:
        """Return one or two lines for a terminal: questions by rule, and the five most frequent reasons of drops."""
        kept = ", ".join(f"{count:,} {rule}" for rule, count in self.kept().items())
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in list(self.dropped().items())[:5])
        first = f"{len(self.questions):,} questions: {kept or 'none'}"
        return f"{first}\n  candidates dropped: {dropped}" if dropped else first
