"""A local chat model: batches, repetitions, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from chat_models import page
from PIL import Image

from smart_train.core.errors import DataError
from smart_train.ingest.questions.chat_model import Answer, Request
from smart_train.ingest.questions.local_chat_model import LocalChatModel
from smart_train.ingest.questions.vlm import VlmOptions, vlm


@pytest.fixture(scope="module")
def local(tiny_qwen3vl: Path):
    asker = LocalChatModel(str(tiny_qwen3vl), batch_size=2, tokens=6, pixels=64 * 64)
    # with the drawn weights, tied to the input's, it repeats its last token whatever it is asked
    head = torch.nn.Linear(64, asker.model.lm_head.weight.shape[0], bias=False)
    torch.nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    asker.model.lm_head = head
    return asker


def test_a_local_model_answers_about_pages_and_texts_the_same_alone_and_in_a_batch(local, tmp_path):
    Image.new("RGB", (200, 90), "red").save(tmp_path / "a.png")
    Image.effect_noise((60, 150), 80).save(tmp_path / "b.png")
    requests = [Request("what is the total?", tmp_path / "a.png"), Request("which harbour and which winter page?"),
                Request("name", tmp_path / "b.png"), Request("a")]  # fmt: skip
    together = local.answer(requests)
    alone = [local.answer([request])[0] for request in requests]
    assert together == alone
    assert len({a.text for a in together}) == 4
    assert all(isinstance(a, Answer) and 0 < a.answer_tokens <= 6 for a in together)
    tokenizer = local.processor.tokenizer
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": requests[3].prompt}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert together[3].prompt_tokens == len(chat["input_ids"])
    assert together[0].prompt_tokens > len(tokenizer(requests[0].prompt)["input_ids"]) + 4  # the image's tokens too


def test_a_repetition_is_another_answer_and_the_first_is_always_the_same(local):
    before = torch.get_rng_state()
    first, again = local.answer([Request("harbour")]), local.answer([Request("harbour")])
    repeated = [local.answer([Request("harbour", None, attempt)])[0].text for attempt in (1, 1, 2, 3)]
    assert first == again and repeated[0] == repeated[1]
    assert len({first[0].text, *repeated}) > 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_local_model_that_writes_nonsense_is_counted_page_by_page(local, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "images/p.png")
    written = vlm([page(1, image="images/p.png"), page(2)], local, tmp_path, VlmOptions(attempts=2, characters=60))
    assert written.questions == [] and written.counts == {"vlm: not the JSON asked for": 2}


def test_local_models_that_cannot_be_asked_are_refused(tiny_bert, tmp_path, local):
    with pytest.raises(DataError, match="not a chat model|no chat template"):
        LocalChatModel(str(tiny_bert))
    with pytest.raises(DataError, match="not a chat model"):
        LocalChatModel(str(tmp_path))
    with pytest.raises(DataError, match="1 or more"):
        LocalChatModel("x", batch_size=0)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="bad.png.*not a readable image"):
        local.answer([Request("q", tmp_path / "bad.png")])


def test_a_language_model_is_asked_about_texts_and_not_about_images(tiny_models, tmp_path):
    import tiny
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_models("qwen3_right"))
    tokenizer.chat_template = tiny.CHAT
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, head_dim=16)  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = LocalChatModel(str(tmp_path), tokens=4)
    texts = [Request("what is the total amount due of the company?"), Request("harbour")]
    assert model.answer(texts) == [model.answer([text])[0] for text in texts]
    with pytest.raises(DataError, match="takes no images"):
        model.answer([Request("q", tmp_path / "a.png")])
