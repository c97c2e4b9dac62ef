"""Which tokens a late score sees: padding, control and pooled tokens out, image patches in, never an empty row."""

from __future__ import annotations

import pytest
import tiny
import tiny_data
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from smart_train.config.schema import LateBlock
from smart_train.models.encoder import SmartEncoder
from smart_train.models.token_filters import control_ids

PAGE = tiny_data.draw_page(0)


@pytest.fixture(scope="module")
def encoder_of(tiny_models, real_base):
    made: dict[tuple, SmartEncoder] = {}

    def find(kind: str, **late) -> SmartEncoder:
        key = (kind, *sorted(late.items()))
        if key not in made:
            base = str(real_base if kind == "real" else tiny_models(kind))
            made[key] = SmartEncoder(base, late=LateBlock(**{k: list(v) for k, v in late.items()}), device="cpu")
        return made[key]

    return find


def kept_pieces(encoder: SmartEncoder, contents: list, role: str = "document") -> list[list[str]]:
    features = encoder.preprocess(contents, role)
    ids = features["input_ids"]
    kept = encoder.keep(ids, features["attention_mask"])
    return [[encoder.tokenizer.decode([i]) for i in row[k].tolist()] for row, k in zip(ids, kept, strict=True)]


def test_an_unknown_token_that_ends_texts_too_is_a_control_token(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(
        tiny_bert if (tiny_bert / "tokenizer.json").is_file() else tiny_bert / "model"
    )
    unknown = tokenizer.unk_token_id
    assert unknown not in control_ids(tokenizer, None)
    tokenizer.eos_token = tokenizer.unk_token
    assert unknown in control_ids(tokenizer, None)


@pytest.mark.parametrize("kind", ["bert", "real"])
def test_of_a_bert_text_the_words_stay(kind, encoder_of):
    """[CLS], [SEP] and padding go; the unknown token is content that has no name, and stays."""
    encoder = encoder_of(kind)
    found = kept_pieces(encoder, ["a chart of revenue", "chart", "☃ chart"])
    assert [len(row) for row in found] == [4, 1, 2]
    assert found[1] == ["chart"]
    assert found[2] == ["[UNK]", "chart"]


def test_a_cls_pooled_model_loses_its_start_and_end_tokens(encoder_of):
    assert kept_pieces(encoder_of("modernbert"), ["chart name", "chart"]) == [["chart", "name"], ["chart"]]


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_right"])
def test_a_decoder_loses_its_pooled_end_token_on_either_padding_side(kind, encoder_of):
    """The pooled <|endoftext|> is also the padding token."""
    encoder = encoder_of(kind)
    found = kept_pieces(encoder, ["a chart", "a chart of yearly revenue by region", "chart"])
    assert "".join(found[1]) == "a chart of yearly revenue by region"
    assert "".join(found[0]) == "a chart" and "".join(found[2]) == "chart"


def test_the_prompt_belongs_to_the_query(encoder_of):
    """Its words are tokens the model reads like the others."""
    found = kept_pieces(encoder_of("qwen3"), ["chart"], "query")
    assert "".join(found[0]) == tiny.PROMPTS["query"] + "chart"


def test_a_special_token_written_in_a_text_is_no_content_either(encoder_of):
    assert "".join(kept_pieces(encoder_of("qwen3"), ["a<|im_start|>chart"])[0]) == "achart"


def test_what_is_masked_is_padding_whatever_it_reads(encoder_of):
    """Not every tokenizer pads with a special token: the mask decides."""
    encoder = encoder_of("real")
    ids = encoder.tokenizer(["a chart of revenue"], return_tensors="pt")["input_ids"]
    mask = torch.tensor([[1, 1, 1, 0, 0, 1]])
    assert encoder.keep(ids, mask).int().tolist() == [[0, 1, 1, 0, 0, 0]]


# -- a chat-template vision-language model


def test_of_a_chat_every_control_token_goes_and_the_words_stay(encoder_of):
    found = kept_pieces(encoder_of("qwen3vl"), ["a chart", "a chart of yearly revenue"])
    assert not set(tiny.QWEN_SPECIAL) & {piece for row in found for piece in row}
    frame = "system\nRepresent the user's input.\nuser\n{}\nassistant"  # the last newline is the pooled token
    assert ["".join(row) for row in found] == [frame.format("a chart"), frame.format("a chart of yearly revenue")]


@pytest.mark.parametrize("with_text", [False, True])
def test_every_patch_of_a_page_stays(with_text, encoder_of):
    """One token for each merged patch: the product of the grid over the square of the merge size."""
    encoder = encoder_of("qwen3vl")
    pages = [tiny_data.draw_page(n) for n in (0, 1, 2)]
    rows = [{"text": "a chart", "image": p} for p in pages] if with_text else pages
    features = encoder.preprocess(rows, "document")
    expected = (
        features["image_grid_thw"].prod(1) // encoder.transformer.processor.image_processor.merge_size**2
    ).tolist()
    assert len(set(expected)) > 1
    assert [row.count("<|image_pad|>") for row in kept_pieces(encoder, rows)] == expected


def test_padding_placeholders_and_pooled_tokens_of_a_chat_are_told_apart(encoder_of, tiny_qwen3vl):
    """The vectors themselves: those of the model called directly, at positions chosen by hand."""
    encoder = encoder_of("qwen3vl")
    features = encoder.preprocess([PAGE, tiny_data.draw_page(2)], "document")
    inputs = {k: v for k, v in features.items() if torch.is_tensor(v) and k != "num_images_per_sample"}
    with torch.no_grad():
        states = AutoModel.from_pretrained(tiny_qwen3vl).eval()(**inputs).last_hidden_state
        found = encoder(features)
    names = encoder.tokenizer.convert_ids_to_tokens
    out = set(tiny.QWEN_SPECIAL) - {"<|image_pad|>"}
    for row, tokens in enumerate(found.tokens.rows()):
        pieces = names(features["input_ids"][row].tolist())
        here = [at for at, piece in enumerate(pieces[:-1]) if piece not in out]
        torch.testing.assert_close(tokens, F.normalize(states[row, here], dim=-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.pooled[row], F.normalize(states[row, -1], dim=-1), atol=1e-5, rtol=0)


# -- never an empty row


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3", "qwen3_right", "real"])
def test_where_nothing_is_left_the_pooled_vector_stands_in(kind, encoder_of):
    """An empty text between others: one token, the pooled vector, whatever it is batched with."""
    encoder = encoder_of(kind)
    found = encoder.encode_documents(["a chart", "", "violin lantern"], batch_size=3)
    rows = list(found.tokens.rows())
    assert [len(row) for row in rows][1] == 1 and len(rows[0]) > 1
    torch.testing.assert_close(rows[1][0], found.pooled[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(rows[0], encoder.encode_documents(["a chart"]).tokens.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[2], encoder.encode_documents(["violin lantern"]).tokens.values, atol=1e-5, rtol=0)


def test_the_stand_in_goes_through_the_head(tiny_bert):
    encoder = SmartEncoder(str(tiny_bert), late=LateBlock(head="layernorm_linear", dim=5), device="cpu")
    encoder.head.projection.linear.weight.data.copy_(torch.randn(5, 32))
    found = encoder.encode_documents([""])
    normed = F.layer_norm(found.pooled, (32,))
    torch.testing.assert_close(
        found.tokens.values, F.normalize(normed @ encoder.head.projection.linear.weight.T, dim=-1), atol=1e-5, rtol=0
    )


# -- late.drop


@pytest.mark.parametrize("kind", ["bert", "real", "qwen3"])
def test_punctuation_is_left_out_when_asked(kind, encoder_of):
    text = "What is the name, of the company?"
    with_it, without = (
        kept_pieces(encoder, [text])[0] for encoder in (encoder_of(kind), encoder_of(kind, drop=("punctuation",)))
    )
    assert "?" in with_it and "," in with_it
    assert without == [piece for piece in with_it if piece.strip() not in {",", "?"}]


def test_a_text_of_punctuation_alone_still_has_a_token(encoder_of):
    found = encoder_of("bert", drop=("punctuation",)).encode_documents(["?!", "chart"])
    assert found.tokens.lengths.tolist() == [1, 1]
    torch.testing.assert_close(found.tokens.values[0], found.pooled[0], atol=1e-6, rtol=0)
