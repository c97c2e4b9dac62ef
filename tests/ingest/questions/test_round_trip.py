"""The round trip: a question stays where a ranker finds its page again."""

from __future__ import annotations

import pytest
from chat_models import Scripted, about, page

from smart_train.core.errors import DataError
from smart_train.ingest.questions.question_set import QuestionSet
from smart_train.ingest.questions.round_trip import base_ranker, round_trip
from smart_train.ingest.questions.vlm import vlm


def test_a_question_stays_where_its_page_is_among_the_first_k(tmp_path):
    written = vlm([page(n) for n in (1, 2)], Scripted(about), tmp_path)
    texts = []

    def ranker(queries):
        texts.extend(queries)
        return [["f-00002", "f-00001"] if "barrels" in q else ["f-00001", "f-00002"] for q in queries]

    kept = round_trip(written, ranker, k=1)
    assert texts == [q.text for q in written.questions]
    assert [(q.text, q.page) for q in kept.questions] == [
        ("why does harbour 1 freeze", 1), ("barrels carried by ferry 2", 2)
    ]  # fmt: skip
    missed = "not among the first 1"
    assert kept.counts == {"vlm: concept": 1, "vlm: fact": 1, f"vlm: fact: {missed}": 1, f"vlm: concept: {missed}": 1}
    assert kept.dropped() == {missed: 2}
    assert round_trip(written, ranker, k=2).questions == written.questions
    copies = round_trip(written, ranker, k=1, same=lambda name: "one and the same")
    assert copies.questions == written.questions
    assert round_trip(QuestionSet(counts={"vlm: fact: too long": 1}), ranker).counts == {"vlm: fact: too long": 1}
    with pytest.raises(DataError, match="0 rankings for 4"):
        round_trip(written, lambda queries: [])
    with pytest.raises(DataError, match="1 or more"):
        round_trip(written, ranker, k=0)


def test_a_base_model_finds_pages_again(tiny_bert):
    from smart_train.data.collection import Collection, Document
    from smart_train.evaluation.encode import encode
    from smart_train.evaluation.ranking import rank_all
    from smart_train.models.encoder import SmartEncoder

    encoder = SmartEncoder.from_pretrained(str(tiny_bert))
    texts = ["invoice total amount due", "harbour winter bridge", "violin lantern mountain river", "music kitchen"]
    corpus = {f"d{n}": Document(f"d{n}", text) for n, text in enumerate(texts)}
    queries = ["winter harbour", "the kitchen", "amount of the invoice"]
    found = base_ranker(encoder, corpus, top=2, mode="late")(queries)
    asked = Collection("x", corpus, {str(n): q for n, q in enumerate(queries)}, {str(n): {"d3": 1} for n in range(3)})
    whole = encode(encoder, asked)
    expected = rank_all(whole.queries, whole.documents, whole.query_ids, whole.document_ids, top=4)["late"]
    assert found == [[d for d, _ in expected[str(n)]][:2] for n in range(3)]
