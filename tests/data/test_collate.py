"""Batches against a brute-force reference: rows, relevance, negatives, chunks."""

from __future__ import annotations

import pickle
from functools import partial
from math import ceil, isnan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smart_train.core.embeddings import Batch
from smart_train.core.errors import DataError
from smart_train.data.collate import Collator, Pairs, chunks
from smart_train.data.collection import Collection, Document, hash_id


def record(contents: list, role: str) -> dict:
    """Stands in for the encoder's preprocess: keeps what it was given, and refuses a chunk of two kinds."""
    assert len({type(content) for content in contents}) == 1, "a chunk must be homogeneous"
    return {"role": role, "contents": contents, "rows": torch.arange(len(contents))}


@st.composite
def cases(draw):
    """(collection, rows, negatives, groups): shared documents, repeated queries, unequal numbers of negatives."""
    texts = draw(st.lists(st.text("abc ", min_size=1, max_size=30), min_size=3, max_size=15))
    corpus = {f"d{n}": Document(f"d{n}", f"{n} {text}") for n, text in enumerate(texts)}
    ids = list(corpus)
    queries, qrels, negatives = {}, {}, {}
    for n in range(draw(st.integers(1, 8))):
        queries[f"q{n}"] = f"query {n}"
        relevant = draw(st.lists(st.sampled_from(ids), min_size=1, max_size=4, unique=True))
        qrels[f"q{n}"] = dict.fromkeys(relevant, 1) | dict.fromkeys(
            draw(st.sets(st.sampled_from(ids))) - {*relevant}, 0
        )
        negatives[f"q{n}"] = draw(st.lists(st.sampled_from([*ids, "not in the corpus"]), max_size=6))
    made = Collection("made", corpus, queries, qrels, negatives)
    rows = draw(st.lists(st.sampled_from(made.pairs()), min_size=1, max_size=12))
    return made, rows, draw(st.integers(0, 4)), draw(st.integers(1, 5))


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(0, 3))
def test_a_batch_is_what_a_plain_reading_of_the_qrels_says(case, seed):
    made, rows, asked, groups = case
    batch = Collator(made, record, asked, groups, seed)(rows)
    names = {hash_id(d): d for d in made.corpus} | {hash_id(q): q for q in made.queries}
    queries, documents = ([names[i] for i in ids.tolist()] for ids in (batch.query_ids, batch.document_ids))
    # every row's content stands where its id stands, chunk after chunk
    assert [c for chunk in batch.queries for c in chunk["contents"]] == [made.queries[q] for q in queries]
    assert [c for chunk in batch.documents for c in chunk["contents"]] == [made.corpus[d].text for d in documents]
    assert {chunk["role"] for chunk in batch.queries} == {"query"}
    assert {chunk["role"] for chunk in batch.documents} == {"document"}
    # nothing twice, nothing missing
    assert len(set(documents)) == len(documents) and len(set(queries)) == len(queries)
    assert set(queries) == {q for q, _ in rows} and {d for _, d in rows} <= set(documents)
    # known: all judgements above 0, not only the pairs that were drawn, nor only what is in the batch
    assert answers(batch) == [[(hash_id(d), g) for d, g in made.qrels[q].items() if g > 0] for q in queries]
    also = sum(made.qrels[q].get(d, 0) > 0 for q in queries for d in documents)
    # positives: the drawn pairs, each once
    pairs = [(queries[i], documents[j]) for i, j in batch.positives.tolist()]
    assert batch.positives.dtype == torch.int64 and len(pairs) == len(set(pairs)) and set(pairs) == set(rows)
    # chunks: about equal, of like length, shorter ones first
    sizes = [len(chunk["contents"]) for chunk in batch.documents]
    assert len(sizes) == min(groups, len(documents)) and max(sizes) - min(sizes) <= 1
    lengths = [len(made.corpus[d].text) for d in documents]
    assert lengths == sorted(lengths)
    # what came besides the positives: negatives that some query of the batch names, and no more than were asked for
    besides = set(documents) - {d for _, d in rows}
    named = {q: set(made.negatives[q]) - made.relevant(q) - {"not in the corpus"} for q in queries}
    assert besides <= set().union(*named.values())
    possible = [min(asked, len(named[q])) for q, _ in rows]
    assert batch.notes["negatives"] == sum(possible)
    assert batch.notes["negatives_missing"] == asked * len(rows) - sum(possible)
    assert (batch.notes["queries"], batch.notes["documents"]) == (len(queries), len(documents))
    assert batch.notes["also_relevant"] == also - len(pairs) and batch.notes["negatives_copies"] == 0
    assert batch.teacher is None


def answers(batch: Batch) -> list[list[tuple[int, float]]]:
    """(id hash, grade) of the known answers of each query."""
    known = batch.known
    pairs = list(zip(known.keys[:, 0].tolist(), known.grades.tolist(), strict=True))
    return [[pairs.pop(0) for _ in range(length)] for length in known.lengths.tolist()]


def collection(negatives: int = 30) -> Collection:
    corpus = {f"d{n}": Document(f"d{n}", "word " * (n + 1)) for n in range(60)}
    queries = {f"q{n}": f"query {n}" for n in range(10)}
    qrels = {f"q{n}": {f"d{n}": 1, f"d{n + 10}": 1} for n in range(10)}
    named = {q: ["d0", "d1", "d11", *(f"d{n}" for n in range(20, 20 + negatives))] for q in queries}
    return Collection("c", corpus, queries, qrels, named)


def test_negatives_are_never_known_positives_however_often_they_are_drawn():
    made = collection(negatives=2)
    drawn: set[str] = set()
    for seed in range(200):
        batch = Collator(made, record, negatives=3, seed=seed)([("q1", "d1")])
        ids = {d for d in made.corpus if hash_id(d) in batch.document_ids.tolist()}
        assert len(ids) == 4 and "d11" not in ids and answers(batch) == [[(hash_id("d1"), 1), (hash_id("d11"), 1)]]
        drawn |= ids
    assert drawn == {"d0", "d1", "d20", "d21"}


def test_each_query_gets_as_many_negatives_as_it_has():
    made = collection()
    made.negatives = {"q0": ["d20"], "q1": ["d21", "d22", "d23"], "q2": []}
    batch = Collator(made, record, negatives=2)([("q0", "d0"), ("q1", "d1"), ("q2", "d2"), ("q3", "d3")])
    assert len(batch.document_ids) == 4 + 1 + 2
    assert batch.notes["negatives"] == 3 and batch.notes["negatives_missing"] == 5


def test_drawing_depends_on_seed_epoch_and_pair_alone():
    rows = [("q1", "d1"), ("q2", "d2"), ("q3", "d3")]

    def drawn(rows, seed=0):
        return Collator(collection(), record, negatives=4, seed=seed)(rows).document_ids.tolist()

    assert drawn(rows) == drawn(rows) != drawn(rows, seed=1)
    alone = Collator(collection(), record, negatives=4)
    alone(rows)  # an earlier call changes nothing: a resumed run draws what the whole run drew
    assert alone(rows).document_ids.tolist() == drawn(rows)
    # another query, and another pair of the same query, draw something else
    by_query = [{*drawn([(f"q{n}", f"d{n}")])} - {hash_id(f"d{n}")} for n in range(2, 10)]
    assert len({frozenset(ids) for ids in by_query}) == 8
    first_twice = Collator(collection(), record, negatives=4)([("q2", "d2"), ("q2", "d12")])
    assert len(first_twice.document_ids) > 2 + 4
    other = [("q1", "d1"), ("q5", "d5"), ("q3", "d3")]
    assert {*drawn(rows)} == {*drawn(rows[::-1])}  # the place in the batch changes nothing
    only_first = {*drawn(rows[:1])} - {hash_id("d1")}
    assert only_first <= {*drawn(rows)} and only_first <= {*drawn(other)}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_pair_meets_all_negatives_before_it_meets_one_again(count, ranks):
    made = collection()
    made.negatives = {q: [f"d{n}" for n in range(20, 28)] for q in made.queries}
    pairs, collate = Pairs(made), Collator(made, record, negatives=count)
    hands: list[list[str]] = []
    for epoch in range(8):
        pairs.set_epoch(epoch)
        order = [*range(epoch, 20), *range(epoch)]  # every epoch in another order, on several ranks
        rows = next(rows for rank in range(ranks) if ("q3", "d3") in (rows := [pairs[n] for n in order[rank::ranks]]))
        drawn = collate([rows[rows.index(("q3", "d3"))]])
        hands.append([d for d in made.corpus if d != "d3" and hash_id(d) in drawn.document_ids.tolist()])
    dealt = [document for hand in hands for document in hand]
    assert all(len(hand) == len(set(hand)) == min(count, 8) for hand in hands)
    full = 8 // min(count, 8)  # epochs of a deal that end within it
    assert len({d for hand in hands[:full] for d in hand}) == full * min(count, 8)
    assert set(dealt) == set(made.negatives["q3"]) and max(map(dealt.count, dealt)) - min(map(dealt.count, dealt)) <= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_that_live_on_hear_of_the_epoch(workers):
    made = collection()
    pairs = Pairs(made)
    collate = Collator(made, record, negatives=3)
    more = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = torch.utils.data.DataLoader(pairs, batch_size=20, collate_fn=collate, **more)
    for epoch in (0, 1, 2, 1):
        pairs.set_epoch(epoch)
        alone = Pairs(made)
        alone.set_epoch(epoch)
        (batch,) = loader
        assert batch.document_ids.tolist() == collate([alone[n] for n in range(20)]).document_ids.tolist()
        assert {row.epoch for row in pickle.loads(pickle.dumps(batch.rows))} == {epoch}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["text", "image", "text+image"])), min_size=1, max_size=30),
    st.integers(1, 6),
    st.none() | st.integers(1, 12),
)
def test_chunks_hold_every_row_once_of_one_kind_and_in_order_of_length(rows, groups, most):
    lengths, kinds = [length for length, _ in rows], [kind for _, kind in rows]
    parts = chunks(lengths, kinds, groups, most)
    assert sorted(r for part in parts for r in part) == list(range(len(rows)))
    assert all(part and len({kinds[r] for r in part}) == 1 for part in parts)
    for kind in set(kinds):
        of_kind = [r for part in parts for r in part if kinds[r] == kind]
        assert of_kind == sorted(of_kind, key=lambda r: (lengths[r], r))
        sizes = [len(part) for part in parts if kinds[part[0]] == kind]
        needed = ceil(len(of_kind) / (most or len(of_kind)))
        assert len(sizes) == max(min(groups, len(of_kind)), needed) and max(sizes) - min(sizes) <= 1
        assert max(sizes) <= (most or len(of_kind))


def test_length_groups_save_padding():
    lengths = [5, 400, 7, 380, 6, 410, 8, 390]

    def padded(groups):
        return sum(len(part) * max(lengths[r] for r in part) for part in chunks(lengths, ["text"] * 8, groups))

    assert padded(2) < 0.6 * padded(1)
    with pytest.raises(ValueError, match="length_groups is 0"):
        chunks(lengths, ["text"] * 8, 0)
    with pytest.raises(ValueError, match="chunk_rows is 0"):
        chunks(lengths, ["text"] * 8, 1, 0)


def halves(chunk: dict) -> list[dict]:
    """Stands in for a split by tokens: no piece has more than two rows."""
    rows = range(0, len(chunk["contents"]), 2)
    return [{"role": chunk["role"], "contents": chunk["contents"][at : at + 2]} for at in rows]


@pytest.mark.parametrize("split", [None, halves])
@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_smaller_chunks_change_nothing_but_where_the_cuts_are(most, split):
    rows = collection().pairs()[:15]
    whole = Collator(collection(), record, negatives=2, length_groups=2)(rows)
    cut = Collator(collection(), record, negatives=2, length_groups=2, chunk_rows=most, split=split)(rows)
    for side in ("queries", "documents"):
        expected = [content for chunk in getattr(whole, side) for content in chunk["contents"]]
        assert [content for chunk in getattr(cut, side) for content in chunk["contents"]] == expected
        sizes = [len(chunk["contents"]) for chunk in getattr(cut, side)]
        assert max(sizes) <= (min(most, 2) if split else most)
    assert [len(chunk["contents"]) for chunk in whole.queries] == [8]
    if most == 3 and not split:  # balanced: not 3, 3, 2 by the way of 3, 3, 3 - 1, but sizes that differ by one
        assert [len(chunk["contents"]) for chunk in cut.queries] == [2, 3, 3]
    for name in ("query_ids", "document_keys", "positives"):
        assert getattr(cut, name).tolist() == getattr(whole, name).tolist()
    assert cut.known.keys.tolist() == whole.known.keys.tolist() and cut.notes == whole.notes


def test_a_page_that_answers_three_queries_is_decoded_and_encoded_once(monkeypatch):
    pages = {f"p{n}": Document(f"p{n}", image=Image.new("RGB", (8, 8 + n))) for n in range(3)}
    queries = {f"q{n}": f"query {n}" for n in range(4)}
    qrels = {"q0": {"p1": 1}, "q1": {"p1": 1}, "q2": {"p1": 1, "p2": 1}, "q3": {"p0": 1}}
    made = Collection("pages", pages, queries, qrels, {"q3": ["p1"]})
    decoded: list[str] = []
    plain = Document.content
    monkeypatch.setattr(Document, "content", lambda self: (decoded.append(self.id), plain(self))[1])
    batch = Collator(made, record, negatives=1)(made.pairs())
    assert sorted(decoded) == ["p0", "p1", "p2"] and len(batch.document_ids) == 3
    assert sum(len(chunk["contents"]) for chunk in batch.documents) == 3
    column = batch.document_ids.tolist().index(hash_id("p1"))
    assert [i for i, j in batch.positives.tolist() if j == column] == [0, 1, 2]
    assert batch.notes["documents"] == 3 and batch.notes["negatives"] == 1


def test_a_negative_with_the_text_of_a_known_answer_is_never_drawn_and_counted():
    made = collection(negatives=2)
    made.corpus["copy"] = Document("copy", made.corpus["d11"].text)
    made.corpus["shouted"] = Document("shouted", f" {str(made.corpus['d11'].text).upper()}")
    made.corpus["other"] = Document("other", f"{made.corpus['d11'].text} not")
    made.corpus["page"] = Document("page", made.corpus["d11"].text, Image.new("RGB", (4, 4)))
    made.negatives["q1"] = ["copy", "shouted", "other", "page", "d11"]
    batch = Collator(made, record_mixed, negatives=3)([("q1", "d1")])
    assert {*batch.document_ids.tolist()} == {hash_id(d) for d in ("d1", "other", "page")}
    notes = batch.notes
    assert (notes["negatives"], notes["negatives_missing"], notes["negatives_copies"]) == (2, 1, 2)


def record_mixed(contents: list, role: str) -> dict:
    return {"contents": contents}


def test_a_teachers_scores_stand_where_their_pairs_stand():
    made = collection()
    made.teacher = {"q1": {"d1": 7.5, "d20": -3.0, "d59": 1.0}, "q2": {"d1": 0.25}, "q9": {"d9": 1.0}}
    made.negatives = {"q1": ["d20", "d21"]}
    batch = Collator(made, record, negatives=2)([("q1", "d1"), ("q2", "d2"), ("q3", "d3")])
    names = {hash_id(d): d for d in made.corpus}
    documents = [names[i] for i in batch.document_ids.tolist()]
    assert batch.teacher is not None and batch.teacher.values.dtype == torch.float32
    assert len(batch.teacher.values) == 3  # of 12 pairs: memory follows what the teacher scored
    found = {
        (query, document): score
        for query, row in zip(("q1", "q2", "q3"), batch.teacher.dense(3, len(documents)).tolist(), strict=True)
        for document, score in zip(documents, row, strict=True)
        if not isnan(score)
    }
    assert found == {("q1", "d1"): 7.5, ("q1", "d20"): -3.0, ("q2", "d1"): 0.25}
    assert batch.to("meta").teacher.values.is_meta


def test_texts_pages_and_captioned_pages_never_share_a_chunk():
    corpus = {}
    for n in range(3):
        corpus[f"t{n}"] = Document(f"t{n}", "long words " * n)
        corpus[f"i{n}"] = Document(f"i{n}", image=Image.new("RGB", (30 - 9 * n, 8), (n, 0, 0)))
        corpus[f"b{n}"] = Document(f"b{n}", f"caption {n}", Image.new("RGB", (4 + n, 4), (0, n, 0)))
    queries = {f"q{d}": f"find {d}" for d in corpus}
    made = Collection("mixed", corpus, queries, {f"q{d}": {d: 1} for d in corpus})
    batch = Collator(made, record, length_groups=2)(made.pairs())
    names = {hash_id(d): d for d in corpus}
    order = [names[i] for i in batch.document_ids.tolist()]
    # kinds by name, then by pixels or characters
    assert order == ["i2", "i1", "i0", "b0", "b1", "b2", "t0", "t1", "t2"]
    assert [len(c["contents"]) for c in batch.documents] == [1, 2, 1, 2, 1, 2]
    contents = [c for chunk in batch.documents for c in chunk["contents"]]
    assert [c.getpixel((0, 0))[0] for c in contents[:3]] == [2, 1, 0]
    assert [(c["text"], c["image"].width) for c in contents[3:6]] == [(f"caption {n}", 4 + n) for n in range(3)]
    queries_in_order = [q for q, _ in made.pairs()]
    assert [(queries_in_order[i], order[j]) for i, j in batch.positives.tolist()] == made.pairs()


def test_a_broken_page_stops_the_batch_and_is_named(tmp_path):
    (tmp_path / "page.png").write_bytes(b"no picture at all")
    made = Collection(
        "pages", {"p9": Document("p9", image=str(tmp_path / "page.png"))}, {"q": "a page"}, {"q": {"p9": 1}}
    )
    with pytest.raises(DataError, match=r"document 'p9' cannot be decoded .*page\.png"):
        Collator(made, record)([("q", "p9")])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "at least one row"),
        ([("q1", "nowhere")], "no document 'nowhere'"),
        ([("nobody", "d1")], "the pair .*nobody"),
        ([("q1", "d5")], r"the pair \('q1', 'd5'\) is not relevant"),
    ],
)
def test_rows_that_are_not_in_the_collection_are_refused(rows, told):
    with pytest.raises(DataError, match=told):
        Collator(collection(), record)(rows)


def test_workers_give_the_batches_that_the_main_process_gives():
    made = collection()
    collate = Collator(made, record, negatives=2, length_groups=2)
    loaders = [
        torch.utils.data.DataLoader(Pairs(made), batch_size=4, collate_fn=c, num_workers=w)
        for c, w in ((collate, 0), (collate, 2), (pickle.loads(pickle.dumps(collate)), 0))
    ]
    seen = [
        [(b.document_keys.tolist(), b.known.keys.tolist(), b.positives.tolist()) for b in loader] for loader in loaders
    ]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 5


def test_a_batch_moves_to_a_device_with_its_chunks():
    batch = Collator(collection(), record)([("q1", "d1")]).to("meta")
    assert isinstance(batch, Batch) and batch.documents[0]["rows"].is_meta and batch.known.keys.is_meta


def test_pairs_are_a_dataset_of_ids():
    made = collection()
    pairs = Pairs(made)
    assert len(pairs) == 20 and [pairs[n] for n in range(20)] == made.pairs()
    with pytest.raises(DataError, match="no pair"):
        Pairs(Collection("empty", {}, {}, {}))


def test_a_collator_takes_any_picklable_preprocess():
    collate = pickle.loads(pickle.dumps(Collator(collection(), partial(record), negatives=1)))
    assert len(collate([("q1", "d1")]).document_ids) == 2
