"""Keep the questions for which a base model finds their page again (round-trip consistency)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document
from smart_train.ingest.questions.question_set import Question, QuestionSet

if TYPE_CHECKING:
    from smart_train.evaluation.protocols import Encoder

Ranker = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""Query texts -> for each query the ids of pages, best first."""


def round_trip(
    questions: QuestionSet, ranker: Ranker, k: int = 10, same: Callable[[str], str] | None = None
) -> QuestionSet:
    """Keep the questions whose page is among the first ``k`` that the ranker returns (Alberti et al. 2019 name it
    round-trip consistency; Dai et al. 2022 use a retriever for it).

    ranker: usually ``base_ranker``; called once, with the texts of all questions
    same: page id -> a key that pages with equal content share (``Page.hash``), so that finding a copy counts

    A question is dropped where several pages answer it, where no page answers it, or where the base model is too weak
    for it. The last is a loss for training, so ``k`` should be more than 1. ``masked`` stays as it is.
    Raises DataError where the ranker does not return one ranking for each question.
    """
    if k < 1:
        raise DataError(f"k is the number of pages looked at; give 1 or more, not {k}")
    same = same or (lambda page: page)
    rankings = ranker([question.text for question in questions.questions]) if questions.questions else []
    if len(rankings) != len(questions.questions):
        raise DataError(f"the ranker returned {len(rankings)} rankings for {len(questions.questions)} questions")
    kept: list[Question] = []
    counts = Counter({name: count for name, count in questions.counts.items() if name not in questions.kept()})
    for question, ranked in zip(questions.questions, rankings, strict=True):
        if same(question.document) in map(same, ranked[:k]):
            kept.append(question)
            counts[question.rule] += 1
        else:
            counts[f"{question.rule}: not among the first {k}"] += 1
    return QuestionSet(kept, dict(questions.masked), dict(sorted(counts.items())))


def base_ranker(
    encoder: Encoder, corpus: Mapping[str, Document], top: int = 10, mode: str = "hybrid", batch_size: int = 32
) -> Ranker:
    """Return a ranker over ``corpus`` by an encoder's scores: query texts -> ids of the first ``top`` documents.

    mode: pooled, late or hybrid. The corpus is encoded in portions; memory holds one portion and the queries.
    """
    from smart_train.evaluation.encode import encode
    from smart_train.evaluation.ranking import rank

    def ranked(texts: Sequence[str]) -> list[list[str]]:
        # encode() takes judged queries alone; which document they are judged by changes no ranking
        judged = next(iter(corpus))
        queries = {f"round trip {number}": text for number, text in enumerate(texts)}
        collection = Collection("round trip", dict(corpus), queries, {query: {judged: 1} for query in queries})
        encoded = encode(encoder, collection, batch_size=batch_size, keep=False)
        rankings = rank(
            encoded.queries,
            encoded.documents,
            encoded.query_ids,
            encoded.document_ids,
            mode,
            encoder.late.hybrid,
            top=top,
            device=getattr(encoder, "device", None),
        )
        return [[document for document, _ in rankings[query]] for query in queries]

    return ranked
