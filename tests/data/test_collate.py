"""Batches against a brute-force reference: rows, relevance, negatives, chunks."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smart_train.data.collate import Collator, Pairs, chunks
from smart_train.data.records import Collection, DataError, Document, hash_id
from smart_train.embeddings import Batch


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
    # relevance: all known judgements, not only the pairs that were drawn
    expected = [[made.qrels[q].get(d, 0) > 0 for d in documents] for q in queries]
    assert batch.relevance.dtype == torch.bool and batch.relevance.tolist() == expected
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
    allowed = {d for q in queries for d in set(made.negatives[q]) - made.relevant(q) if d in made.corpus}
    assert besides <= allowed
    possible = [min(asked, len(set(made.negatives[q]) - made.relevant(q) - {"not in the corpus"})) for q, _ in rows]
    assert batch.notes["negatives"] == sum(possible)
    assert batch.notes["negatives_missing"] == asked * len(rows) - sum(possible)
    assert (batch.notes["queries"], batch.notes["documents"]) == (len(queries), len(documents))
    assert batch.notes["also_relevant"] == sum(map(sum, expected)) - len(pairs)


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
        assert len(ids) == 4 and "d11" not in ids and batch.relevance.sum() == 1
        drawn |= ids
    assert drawn == {"d0", "d1", "d20", "d21"}


def test_each_query_gets_as_many_negatives_as_it_has():
    made = collection()
    made.negatives = {"q0": ["d20"], "q1": ["d21", "d22", "d23"], "q2": []}
    batch = Collator(made, record, negatives=2)([("q0", "d0"), ("q1", "d1"), ("q2", "d2"), ("q3", "d3")])
    assert len(batch.document_ids) == 4 + 1 + 2
    assert batch.notes["negatives"] == 3 and batch.notes["negatives_missing"] == 5


def test_drawing_depends_on_seed_query_and_position_alone():
    rows = [("q1", "d1"), ("q2", "d2"), ("q3", "d3")]

    def drawn(rows, seed=0):
        return Collator(collection(), record, negatives=4, seed=seed)(rows).document_ids.tolist()

    assert drawn(rows) == drawn(rows) != drawn(rows, seed=1)
    alone = Collator(collection(), record, negatives=4)
    alone(rows)  # an earlier call changes nothing: a resumed run draws what the whole run drew
    assert alone(rows).document_ids.tolist() == drawn(rows)
    # another query at the same position, and the same query at another position, draw something else
    by_query = [{*drawn([(f"q{n}", f"d{n}")])} - {hash_id(f"d{n}")} for n in range(2, 10)]
    assert len({frozenset(ids) for ids in by_query}) == 8
    first_twice = Collator(collection(), record, negatives=4)([("q2", "d2"), ("q2", "d12")])
    assert len(first_twice.document_ids) > 2 + 4
    other = [("q1", "d1"), ("q5", "d5"), ("q3", "d3")]
    only_first = {*drawn(rows[:1])} - {hash_id("d1")}
    assert only_first <= {*drawn(rows)} and only_first <= {*drawn(other)}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["text", "image", "text+image"])), min_size=1, max_size=30),
    st.integers(1, 6),
)
def test_chunks_hold_every_row_once_of_one_kind_and_in_order_of_length(rows, groups):
    lengths, kinds = [length for length, _ in rows], [kind for _, kind in rows]
    parts = chunks(lengths, kinds, groups)
    assert sorted(r for part in parts for r in part) == list(range(len(rows)))
    assert all(part and len({kinds[r] for r in part}) == 1 for part in parts)
    for kind in set(kinds):
        of_kind = [r for part in parts for r in part if kinds[r] == kind]
        assert of_kind == sorted(of_kind, key=lambda r: (lengths[r], r))
        sizes = [len(part) for part in parts if kinds[part[0]] == kind]
        assert len(sizes) == min(groups, len(of_kind)) and max(sizes) - min(sizes) <= 1


def test_length_groups_save_padding():
    lengths = [5, 400, 7, 380, 6, 410, 8, 390]

    def padded(groups):
        return sum(len(part) * max(lengths[r] for r in part) for part in chunks(lengths, ["text"] * 8, groups))

    assert padded(2) < 0.6 * padded(1)
    with pytest.raises(ValueError, match="length_groups is 0"):
        chunks(lengths, ["text"] * 8, 0)


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
    assert order == ["i2", "i1", "i0", "t0", "t1", "t2", "b0", "b1", "b2"]
    assert [len(c["contents"]) for c in batch.documents] == [1, 2, 1, 2, 1, 2]
    contents = [c for chunk in batch.documents for c in chunk["contents"]]
    assert [c.getpixel((0, 0))[0] for c in contents[:3]] == [2, 1, 0]
    assert [(c["text"], c["image"].width) for c in contents[6:]] == [(f"caption {n}", 4 + n) for n in range(3)]
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
        [(b.document_ids.tolist(), b.relevance.tolist(), b.positives.tolist()) for b in loader] for loader in loaders
    ]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 5


def test_a_batch_moves_to_a_device_with_its_chunks():
    batch = Collator(collection(), record)([("q1", "d1")]).to("meta")
    assert isinstance(batch, Batch) and batch.documents[0]["rows"].is_meta and batch.relevance.is_meta


def test_pairs_are_a_dataset_of_ids():
    made = collection()
    pairs = Pairs(made)
    assert len(pairs) == 20 and [pairs[n] for n in range(20)] == made.pairs()
    with pytest.raises(DataError, match="no pair"):
        Pairs(Collection("empty", {}, {}, {}))


def test_a_collator_takes_any_picklable_preprocess():
    collate = pickle.loads(pickle.dumps(Collator(collection(), partial(record), negatives=1)))
    assert len(collate([("q1", "d1")]).document_ids) == 2
