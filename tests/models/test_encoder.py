"""SmartEncoder against plain SentenceTransformer (pooled), and against itself: no batch, order or company changes a
vector or a score."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_data
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from smart_train.config.schema import LateBlock, ModelBlock
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import UsageError
from smart_train.data.collate import TruncatingPreprocess
from smart_train.models.encoder import SmartEncoder
from smart_train.models.processors import images_without_torchvision

TEXT_KINDS = ["bert", "modernbert", "qwen3", "qwen3_right", "real"]
LONG = " ".join(tiny.WORDS * 2)
MIXED = [*tiny.TEXTS, LONG, "", "chart chart chart", "?", *tiny.SENTENCES]


@pytest.fixture(scope="module")
def base_of(tiny_models, real_base):
    return lambda kind: str(real_base if kind == "real" else tiny_models(kind))


@pytest.fixture(scope="module")
def encoder_of(base_of):
    """One training-free encoder a kind; tests that change one make their own."""
    made: dict[str, SmartEncoder] = {}

    def find(kind: str) -> SmartEncoder:
        if kind not in made:
            made[kind] = SmartEncoder(base_of(kind), device="cpu")
        return made[kind]

    return find


@pytest.fixture(scope="module")
def plain_of(base_of):
    def find(kind: str) -> SentenceTransformer:
        with images_without_torchvision():
            return SentenceTransformer(base_of(kind), device="cpu")

    return find


def vl_contents() -> list:
    pages = [tiny_data.draw_page(n) for n in (0, 1, 9)]
    return ["a chart", *pages, {"text": "an invoice on a page", "image": pages[0]}, LONG, ""]


def contents_of(kind: str) -> list:
    return vl_contents() if kind == "qwen3vl" else MIXED


# -- the pooled view


@pytest.mark.parametrize("kind", [*TEXT_KINDS, "qwen3vl"])
@pytest.mark.parametrize("role", ["query", "document"])
def test_the_pooled_vector_is_plain_sentence_transformers(kind, role, encoder_of, plain_of):
    """Prompts included: Qwen3's query instruction goes before queries and not before documents."""
    contents, plain = contents_of(kind), plain_of(kind)
    expected = (plain.encode_query if role == "query" else plain.encode_document)(contents)
    ours = encoder_of(kind).encode(contents, role).pooled.numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_the_query_prompt_is_part_of_a_query(encoder_of):
    encoder = encoder_of("qwen3")
    query, document = encoder.encode_queries(["a chart"]), encoder.encode_documents(["a chart"])
    assert (query.pooled - document.pooled).abs().max() > 1e-3
    assert query.tokens.lengths[0] > document.tokens.lengths[0]


@pytest.mark.parametrize("prompt", ["Query: ", ""])
def test_the_recipes_prompt_replaces_the_bases(prompt, base_of, plain_of):
    encoder = SmartEncoder(base_of("qwen3"), model=ModelBlock(query_prompt=prompt), device="cpu")
    expected = plain_of("qwen3").encode(tiny.TEXTS, prompt=prompt)
    np.testing.assert_allclose(encoder.encode_queries(tiny.TEXTS).pooled.numpy(), expected, atol=2e-6)


def test_a_chat_models_prompt_is_its_system_message(base_of, plain_of):
    encoder = SmartEncoder(base_of("qwen3vl"), model=ModelBlock(query_prompt="Find the page."), device="cpu")
    expected = plain_of("qwen3vl").encode(["a chart"], prompt="Find the page.")
    np.testing.assert_allclose(encoder.encode_queries(["a chart"]).pooled.numpy(), expected, atol=2e-6)
    text = encoder.tokenizer.decode(encoder.preprocess(["a chart"], "query")["input_ids"][0])
    assert text.startswith("<|im_start|>system\nFind the page.<|im_end|>")


# -- nothing but its own content reaches a row


@pytest.mark.parametrize("kind", [*TEXT_KINDS, "qwen3vl"])
def test_the_batch_size_never_changes_a_vector_or_a_score(kind, encoder_of):
    encoder, contents = encoder_of(kind), contents_of(kind)
    queries = ["a chart of revenue", "violin", LONG]
    found = {size: encoder.encode_documents(contents, batch_size=size) for size in (1, 3, 64)}
    asked = {size: encoder.encode_queries(queries, batch_size=size) for size in (1, 3, 64)}
    for size in (3, 64):
        assert torch.equal(found[size].tokens.lengths, found[1].tokens.lengths)
        torch.testing.assert_close(found[size].pooled, found[1].pooled, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[size].tokens.values, found[1].tokens.values, atol=1e-5, rtol=0)
        for mode in ("pooled", "late", "hybrid"):
            ours, alone = (encoder.score(asked[n], found[n], mode=mode) for n in (size, 1))
            torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3vl"])
def test_rows_come_back_in_the_order_they_were_given(kind, encoder_of):
    encoder, contents = encoder_of(kind), contents_of(kind)
    together = encoder.encode_documents(contents, batch_size=4)
    for row, content in enumerate(contents):
        alone = encoder.encode_documents([content])
        torch.testing.assert_close(alone.pooled[0], together.pooled[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.tokens.values, list(together.tokens.rows())[row], atol=1e-5, rtol=0)


def test_chunks_of_one_forward_are_rows_one_after_another(encoder_of):
    encoder = encoder_of("bert")
    chunks = [encoder.preprocess(MIXED[:3], "document"), encoder.preprocess(MIXED[3:6], "document")]
    with torch.no_grad():
        together, apart = encoder(chunks), [encoder(chunk) for chunk in chunks]
    torch.testing.assert_close(together.pooled, torch.cat([e.pooled for e in apart]), atol=0, rtol=0)
    assert together.tokens.lengths.tolist() == [n for e in apart for n in e.tokens.lengths.tolist()]


def test_the_forward_leaves_the_features_as_they_were(encoder_of):
    encoder = encoder_of("qwen3vl")
    features = encoder.preprocess([tiny_data.draw_page(0)], "document")
    before = {name: value.clone() if torch.is_tensor(value) else value for name, value in features.items()}
    with torch.no_grad():
        first, second = encoder(features), encoder(features)
    assert sorted(features) == sorted(before)
    torch.testing.assert_close(first.pooled, second.pooled, atol=0, rtol=0)


def test_a_forward_after_encoding_is_as_deterministic_as_before(base_of):
    """all-MiniLM has dropout: encoding must not leave a loaded encoder with it switched on."""
    encoder = SmartEncoder(base_of("real"), device="cpu")
    expected = encoder.encode_documents(tiny.TEXTS)
    with torch.no_grad():
        found = encoder(encoder.preprocess(tiny.TEXTS, "document"))
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=0)


def test_encoding_during_training_switches_dropout_off_and_on_again(base_of):
    encoder = SmartEncoder(base_of("real"), device="cpu")
    expected = encoder.eval().encode_documents(tiny.TEXTS)
    encoder.train()
    found = encoder.encode_documents(tiny.TEXTS)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=0, rtol=0)
    assert encoder.training and encoder.backbone.training


# -- what comes out


@pytest.mark.parametrize("kind", ["bert", "qwen3vl"])
def test_vectors_are_normalised_float32_and_no_row_is_without_a_token(kind, encoder_of):
    found = encoder_of(kind).encode_documents(contents_of(kind))
    assert found.pooled.dtype == found.tokens.values.dtype == torch.float32
    torch.testing.assert_close(found.pooled.norm(dim=-1), torch.ones(len(found)), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.tokens.values.norm(dim=-1), torch.ones(len(found.tokens.values)), atol=1e-5, rtol=0
    )
    found.tokens.check()


def test_numpy_output_holds_the_same_numbers(encoder_of):
    torch_out = encoder_of("bert").encode_documents(MIXED)
    pooled, tokens = encoder_of("bert").encode_documents(MIXED, output="numpy")
    np.testing.assert_array_equal(pooled, torch_out.pooled.numpy())
    for array, row in zip(tokens, torch_out.tokens.rows(), strict=True):
        np.testing.assert_array_equal(array, row.numpy())


def test_tokens_can_be_kept_in_half_precision(encoder_of):
    found = encoder_of("bert").encode_documents(MIXED, dtype=torch.float16)
    assert found.tokens.values.dtype == torch.float16 and found.pooled.dtype == torch.float32


def test_documents_kept_in_half_precision_are_scored(encoder_of):
    encoder = encoder_of("bert")
    found = encoder.score(MIXED, encoder.encode_documents(MIXED, dtype=torch.float16), mode="late")
    torch.testing.assert_close(found, encoder.score(MIXED, MIXED, mode="late"), atol=2e-3, rtol=0)


@pytest.mark.parametrize("method", ["encode_query", "encode_queries", "encode_document", "encode_documents"])
@pytest.mark.parametrize("single", ["a query", {"text": "a query"}, np.str_("a query"), np.array("a query")])
def test_a_single_row_is_one_row(single, method, encoder_of):
    encode = getattr(encoder_of("bert"), method)
    found, wanted = encode(single), encode(["a query"])
    assert len(found) == len(found.tokens) == 1 and torch.equal(found.pooled, wanted.pooled)


ROWS = {
    "tuple": tuple,
    "array": np.array,
    "array of objects": lambda rows: np.array(rows, dtype=object),
    "series": pd.Series,
    "series whose labels are other places": lambda rows: pd.Series(rows, index=range(len(rows))[::-1]),
    "filtered series": lambda rows: pd.Series(["left out", *rows])[1:],
    "column of a dataset": lambda rows: Dataset.from_dict({"text": rows})["text"],
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_keep_their_order_in_every_container(kind, encoder_of):
    encoder, rows = encoder_of("bert"), ["chart", "a yearly revenue chart", "violin"]
    wanted = encoder.encode_documents(rows)
    found = encoder.encode_documents(ROWS[kind](rows))
    assert torch.equal(found.pooled, wanted.pooled) and torch.equal(found.tokens.lengths, wanted.tokens.lengths)
    assert torch.equal(encoder.similarity(rows[0], ROWS[kind](rows)), encoder.similarity([rows[0]], rows))


def test_a_print_of_encoder_and_embeddings_says_what_they_are(encoder_of):
    encoder = encoder_of("bert")
    lines = repr(encoder).splitlines()
    assert lines[0] == "SmartEncoder(" and f"  base: {encoder.settings.base}" in lines
    assert "  pooled: 32 dimensions, mean pooling" in lines and any("(no adapter)" in line for line in lines)
    assert repr(encoder.encode_query("chart")).startswith("Embeddings(1 rows, pooled of 32 dimensions, torch.float32")


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        (None, "contents is a list of rows, and this is NoneType"),
        (5, "this is int"),
        (Path("page.png"), "row 0: it has 'image', and the base reads text"),
        (pd.Series(["a", None]), "row 1: .* is no content"),
        (np.array([["a", "b"]]), "row 0: list is no content"),
        (pd.DataFrame({"text": ["a"]}), "this is DataFrame; give a list"),
        (iter(["a"]), "this is list_iterator; write list"),
        (["a", None], "row 1: NoneType is no content"),
        (["a", 5], "row 1: int is no content"),
        ([b"bytes"], "row 0: bytes is no content"),
        ([["a"]], "row 0: list is no content"),
        ([np.zeros((3, 3))], "row 0: ndarray is no content"),
        (["a", {}], "row 1: it has no text and no image"),
        ([{"txt": "a"}], "row 0: it has 'txt', and the base reads text"),
        ([{"text": 5}], "row 0: its text is int"),
        (["a", "\ud800"], "row 1: its text has half of a surrogate pair"),
        (["a", "b\0"], "row 1: its text has a NUL"),
        ([tiny_data.draw_page(1)], "row 0: it has 'image', and the base reads text"),
    ],
)
def test_what_is_no_content_is_told_with_its_row(contents, told, encoder_of):
    with pytest.raises(UsageError, match=told):
        encoder_of("bert").encode_documents(contents)


@pytest.mark.parametrize("device", ["nan", "0", "cuda:99", "tpu", "", "cpu:x"])
def test_a_device_that_is_none_is_told_before_the_base_is_loaded(device, tiny_bert):
    with pytest.raises(UsageError, match="cannot be used"):
        SmartEncoder(str(tiny_bert), device=device)


def test_no_contents_give_no_rows(encoder_of):
    found = encoder_of("bert").encode_documents([])
    assert isinstance(found, Embeddings) and len(found) == 0 and found.pooled.shape == (0, 32)


def test_progress_wraps_the_batches(encoder_of):
    seen = []
    encoder_of("bert").encode_documents(
        MIXED[:5], batch_size=2, progress=lambda batches: [seen.append(1) or b for b in batches]
    )
    assert len(seen) == 3


# -- scores


@pytest.mark.parametrize("kind", ["bert", "qwen3", "qwen3vl", "real"])
def test_any_base_scores_pooled_late_and_hybrid_without_training(kind, encoder_of):
    """The three modes from the two views, written out."""
    encoder, documents = encoder_of(kind), contents_of(kind)
    queries = ["what is on the chart", "violin"]
    q, x = encoder.encode_queries(queries), encoder.encode_documents(documents)
    pooled = q.pooled @ x.pooled.T
    late = torch.tensor([[float((a @ b.T).amax(1).mean()) for b in x.tokens.rows()] for a in q.tokens.rows()])
    for mode, expected in (("pooled", pooled), ("late", late), ("hybrid", (pooled + late) / 2)):
        torch.testing.assert_close(encoder.score(queries, documents, mode=mode), expected, atol=1e-5, rtol=0)


def test_a_text_finds_itself_by_every_mode(encoder_of):
    texts = tiny.TEXTS
    for mode in ("pooled", "late", "hybrid"):
        scores = encoder_of("real").score(texts, texts, mode=mode)
        assert scores.argmax(1).tolist() == list(range(len(texts)))


def test_an_image_path_is_the_image(encoder_of, tmp_path):
    page = tiny_data.draw_page(4)
    page.save(tmp_path / "page.png")
    encoder = encoder_of("qwen3vl")
    rows = [
        page,
        tmp_path / "page.png",
        {"text": "x", "image": page},
        {"text": "x", "image": str(tmp_path / "page.png")},
    ]
    found = encoder.encode_documents(rows).pooled
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[3], found[2], atol=1e-5, rtol=0)
    assert (found[2] - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["page.png", "https://example.com/page.png", "data:image/png;base64,AAAA"])
def test_a_string_is_text_whatever_it_reads_like(name, encoder_of, tmp_path, monkeypatch):
    """No file is opened and nothing is fetched, also where a file of that name lies there."""
    tiny_data.draw_page(4).save(tmp_path / "page.png")
    monkeypatch.chdir(tmp_path)
    encoder = encoder_of("qwen3vl")
    features = encoder.preprocess([name], "document")
    assert "pixel_values" not in features
    assert name in encoder.tokenizer.decode(features["input_ids"][0])


@pytest.mark.parametrize("wrap", [lambda path: path, lambda path: {"image": str(path)}])
def test_a_broken_image_is_refused_by_its_name(wrap, encoder_of, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="broken.png"):
        encoder_of("qwen3vl").encode_documents([wrap(tmp_path / "broken.png")])


# -- lengths and pixels


def test_query_tokens_cuts_queries_and_counts_them(base_of, plain_of):
    encoder = SmartEncoder(base_of("bert"), model=ModelBlock(query_tokens=8), device="cpu")
    features = encoder.preprocess([LONG, "chart"], "query")
    assert features["input_ids"].shape[1] == 8
    assert encoder.preprocess([LONG], "document")["input_ids"].shape[1] > 8
    plain = plain_of("bert")
    plain.max_seq_length = 8
    found = encoder.encode_queries([LONG, "chart"])
    np.testing.assert_allclose(found.pooled.numpy(), plain.encode([LONG, "chart"]), atol=2e-6)
    assert encoder.cut_rows == {"query": 1, "document": 0}


def test_a_cut_never_takes_an_image_or_the_pooled_token(base_of):
    """On a chat model the text alone is cut: 4 tokens of it stay, every patch, and the template's end."""
    whole = SmartEncoder(base_of("qwen3vl"), device="cpu")
    cut = SmartEncoder(base_of("qwen3vl"), model=ModelBlock(document_tokens=4), device="cpu")
    row = {"text": LONG, "image": tiny_data.draw_page(0)}
    long, short = (e.preprocess([row], "document")["input_ids"][0] for e in (whole, cut))
    image = whole.backbone.config.image_token_id
    assert (short == image).sum() == (long == image).sum() > 0
    words = len(whole.tokenizer(LONG, add_special_tokens=False)["input_ids"])
    assert len(long) - len(short) == words - 4
    assert short[-5:].tolist() == long[-5:].tolist()
    cut.encode([row], "document")
    assert cut.cut_rows["document"] == 1, "counted where the forward is, whoever preprocessed"


@pytest.mark.parametrize(("pixels", "patches"), [(128 * 128, 16), (64 * 64, 4)])
def test_the_pixel_budget_bounds_the_tokens_of_a_page(pixels, patches, base_of):
    encoder = SmartEncoder(base_of("qwen3vl"), model=ModelBlock(max_pixels=pixels), device="cpu")
    ids = encoder.preprocess([tiny_data.draw_page(0).resize((256, 256))], "document")["input_ids"]
    assert (ids == encoder.backbone.config.image_token_id).sum() == patches


def test_a_pixel_budget_on_a_text_model_is_refused(base_of):
    with pytest.raises(ValueError, match="pixel"):
        SmartEncoder(base_of("bert"), model=ModelBlock(max_pixels=100), device="cpu")


def test_half_precision_bases_give_float32_vectors(base_of):
    encoder = SmartEncoder(base_of("qwen3"), model=ModelBlock(dtype="bfloat16"), device="cpu")
    found = encoder.encode_documents(tiny.TEXTS)
    assert encoder.backbone.dtype == torch.bfloat16
    assert found.pooled.dtype == found.tokens.values.dtype == torch.float32
    exact = SmartEncoder(base_of("qwen3"), device="cpu").encode_documents(tiny.TEXTS)
    assert (found.pooled * exact.pooled).sum(-1).min() > 0.99


def test_the_token_width_is_what_the_head_gives(base_of):
    for late, width in ((LateBlock(), 32), (LateBlock(dim=8), 8), (LateBlock(head="linear", dim=12), 12)):
        encoder = SmartEncoder(base_of("bert"), late=late, device="cpu")
        assert encoder.encode_documents(["a chart"]).tokens.width == encoder.token_width == width


def test_rows_are_trained_on_shorter_than_they_are_read(base_of):
    encoder = SmartEncoder(base_of("bert"), device="cpu")
    shorter = TruncatingPreprocess(encoder.preprocess, query_tokens=4, document_tokens=6)
    lengths = [shorter([LONG], role)["input_ids"].shape[1] for role in ("query", "document")]
    assert lengths == [4, 6]
    shortest = SmartEncoder(base_of("bert"), model=ModelBlock(document_tokens=5), device="cpu")
    assert TruncatingPreprocess(shortest.preprocess, 4, 6)([LONG], "document")["input_ids"].shape[1] == 5, (
        "never longer than read"
    )
    encoder(shorter([LONG, "a chart"], "document"))
    assert encoder.cut_rows == {"query": 0, "document": 1}, "what training cuts is counted too"
    assert torch.equal(
        encoder.encode([LONG], "document").pooled, SmartEncoder(base_of("bert")).encode([LONG], "document").pooled
    )


def test_blocks_are_written_as_in_a_recipe(tiny_bert):
    encoder = SmartEncoder(str(tiny_bert), late={"layer": 2, "dim": 8, "head": "linear"}, lora={"r": 4}, device="cpu")
    assert encoder.layers == [2] and encoder.token_width == 8
    assert encoder.adapter is not None and (encoder.adapter.kind, encoder.adapter.r) == ("lora", 4)
    same = SmartEncoder(str(tiny_bert), late=LateBlock(layer=2, dim=8, head="linear"), device="cpu")
    assert same.late == encoder.late


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"late": {"lyer": 3}}, "late.lyer: there is no such key, the nearest is late.layer; write late.layer"),
        ({"lora": {"r": "8"}}, "adapter.r: must be a whole number"),
        ({"late": {"head": lambda states: states}}, "cannot be found again by its name; define it at the top level"),
        ({"lora": {"r": 8}, "adapter": {"r": 8}}, "lora and adapter are both given"),
    ],
)
def test_a_wrong_block_is_refused_as_in_a_recipe(blocks, message, tiny_bert):
    with pytest.raises(ValueError, match=message):
        SmartEncoder(str(tiny_bert), device="cpu", **blocks)


def test_the_names_of_sentence_transformers_mean_the_same(tiny_qwen3):
    encoder = SmartEncoder(str(tiny_qwen3), device="cpu")
    queries, documents = encoder.encode_query(["a chart"]), encoder.encode_document(["a chart", "violin"])
    assert torch.equal(queries.pooled, encoder.encode_queries(["a chart"]).pooled)
    assert torch.equal(documents.pooled, encoder.encode_documents(["a chart", "violin"]).pooled)
    assert torch.equal(encoder.similarity(queries, documents), encoder.score(queries, documents, mode="hybrid"))
    assert encoder.prompts == {"query": tiny.PROMPTS["query"], "document": ""}


@pytest.mark.parametrize("method", ["hierarchical", "kmeans"])
def test_token_vectors_of_documents_are_pooled_as_by_hand_and_those_of_queries_are_not(method, tiny_bert, tmp_path):
    encoder, texts = SmartEncoder(str(tiny_bert), device="cpu"), [*tiny.TEXTS, "", "chart"]
    plain, pooled = encoder.encode_documents(texts), encoder.encode_documents(texts, pool_factor=3, pool_method=method)
    assert torch.equal(plain.pooled, pooled.pooled)
    for tokens, fewer in zip(plain.tokens.rows(), pooled.tokens.rows(), strict=True):
        wanted = -(-len(tokens) // 3)
        assert len(fewer) == wanted if method == "hierarchical" else 1 <= len(fewer) <= wanted
        groups = by_ward(tokens, wanted) if method == "hierarchical" else [tokens] if wanted == 1 else []
        means = [group.mean(0) / group.mean(0).norm() for group in groups]
        assert not means or torch.allclose(torch.stack(means), fewer, atol=1e-5)
        assert torch.allclose(fewer.norm(dim=1), torch.ones(len(fewer)), atol=1e-5)
    queries = [encoder.encode_queries(texts, pool_factor=factor) for factor in (1, 3)]
    assert torch.equal(queries[0].tokens.values, queries[1].tokens.values)
    score = encoder.score(["chart"], texts, mode="late", pool_factor=3, pool_method=method)
    assert torch.allclose(score, encoder.score(["chart"], pooled, mode="late"), atol=1e-5)
    assert "pool_" not in (encoder.save_pretrained(tmp_path / "saved") / "smart_train.json").read_text()


def by_ward(tokens: torch.Tensor, wanted: int) -> list[torch.Tensor]:
    """Merge, again and again, the two clusters that raise the sum of squares within clusters least."""
    clusters = [[number] for number in range(len(tokens))]

    def rise(a: list[int], b: list[int]) -> float:
        distance = (tokens[a].double().mean(0) - tokens[b].double().mean(0)).square().sum()
        return float(distance) * len(a) * len(b) / (len(a) + len(b))

    while len(clusters) > wanted:
        first, second = min(combinations(clusters, 2), key=lambda pair: rise(*pair))
        clusters = [one for one in clusters if one not in (first, second)] + [first + second]
    return [tokens[sorted(one)] for one in sorted(clusters, key=min)]


def test_pooling_that_is_not_possible_is_refused_before_anything_is_encoded(tiny_bert):
    encoder = SmartEncoder(str(tiny_bert), device="cpu")
    for role in ("query", "document"):
        with pytest.raises(UsageError, match="cannot be pooled by 0 with 'hierarchical'; give 1 or more"):
            encoder.encode([], role, pool_factor=0)
    with pytest.raises(UsageError, match="with 'mean'; give 1 or more, and one of .*kmeans"):
        encoder.encode_documents(["a"], pool_factor=2, pool_method="mean")
