"""A Qwen-VL folder loads for images where torchvision is missing, says so, refuses videos and is saved whole."""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
import tiny
import tiny_data
from sentence_transformers import SentenceTransformer
from transformers import AutoProcessor
from transformers.utils import is_torchvision_available

from smart_train.models import processors

pytestmark = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed: nothing to stand in for")


@pytest.fixture(scope="module")
def processor(tiny_qwen3vl):
    with processors.images_without_torchvision():
        return AutoProcessor.from_pretrained(tiny_qwen3vl)


def test_without_help_the_folder_does_not_load(tiny_qwen3vl):
    with pytest.raises(ImportError, match="(?i)torchvision"):
        AutoProcessor.from_pretrained(tiny_qwen3vl)


def test_after_the_help_is_closed_transformers_is_as_it_was(tiny_qwen3vl):
    import transformers.models.qwen3_vl as module

    before = module.Qwen3VLProcessor
    with processors.images_without_torchvision():
        assert module.Qwen3VLProcessor is processors.Qwen3VLProcessor
    assert module.Qwen3VLProcessor is before is processors.WholeQwen3VLProcessor
    with pytest.raises(RuntimeError, match="inside"), processors.images_without_torchvision():
        raise RuntimeError("inside")
    assert module.Qwen3VLProcessor is before


def test_sentence_transformers_embeds_pages_texts_and_both_with_it(tiny_qwen3vl):
    page, other = tiny_data.draw_page(0), tiny_data.draw_page(9)
    with processors.images_without_torchvision():
        model = SentenceTransformer(str(tiny_qwen3vl), device="cpu")
    vectors = model.encode([page, other, {"text": "a chart", "image": page}, "a chart"])
    assert vectors.shape == (4, 64)
    assert np.abs(np.triu(vectors @ vectors.T, 1)).max() < 0.999


def test_each_image_token_stands_for_one_merged_patch(processor):
    page = tiny_data.draw_page(0)
    out = processor(images=[page], text=["<|vision_start|><|image_pad|><|vision_end|>"], return_tensors="pt")
    image_tokens = (out["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum()
    assert image_tokens == out["image_grid_thw"].prod() // 2**2 == out["mm_token_type_ids"].sum()


def test_a_video_is_refused_with_the_reason(processor):
    with pytest.raises(processors.VideoRefused, match="torchvision"):
        processor(videos=[np.zeros((2, 3, 32, 32))], text=["<|vision_start|><|video_pad|><|vision_end|>"])


def test_what_is_missing_is_said_once(tiny_qwen3vl, caplog):
    processors.report.cache_clear()
    with caplog.at_level(logging.WARNING, logger=processors.__name__), processors.images_without_torchvision():
        AutoProcessor.from_pretrained(tiny_qwen3vl)
        AutoProcessor.from_pretrained(tiny_qwen3vl)
    said = [record.getMessage() for record in caplog.records if "torchvision" in record.getMessage()]
    assert len(said) == 1 and "videos are refused" in said[0]


def test_the_video_settings_survive_loading_and_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "processor_config.json").read_text())
    assert written["processor_class"] == "Qwen3VLProcessor"
    assert written["video_processor"] == tiny.VIDEO


def test_settings_in_a_file_of_their_own_are_kept_too(tiny_qwen3vl, processor, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    processor.save_pretrained(old)
    config = json.loads((old / "processor_config.json").read_text())
    video = config.pop("video_processor")
    (old / "processor_config.json").write_text(json.dumps(config))
    (old / "video_preprocessor_config.json").write_text(json.dumps(video))
    with processors.images_without_torchvision():
        AutoProcessor.from_pretrained(old).save_pretrained(new)
    assert json.loads((new / "processor_config.json").read_text())["video_processor"] == tiny.VIDEO


def test_it_travels_to_a_worker(processor):
    """A pickled copy, as a spawned data worker gets it, gives the same features outside the help."""
    copy = pickle.loads(pickle.dumps(processor))
    page, text = tiny_data.draw_page(3), ["<|vision_start|><|image_pad|><|vision_end|>chart"]
    ours, theirs = (p(images=[page], text=text, return_tensors="pt") for p in (processor, copy))
    assert sorted(ours) == sorted(theirs)
    assert all((ours[name] == theirs[name]).all() for name in ours)
