"""A Qwen3-VL with random weights as a folder that sentence-transformers loads: of 2B size, or tiny.

Time and memory of a step do not depend on what the weights are, so nothing is downloaded.  The tokenizer is the tests'
small one; the embedding table has the real one's size.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import tiny
import torch
from PIL import Image, ImageDraw
from transformers import Qwen3VLConfig, Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from smart_train.models.processors import Qwen3VLProcessor

SOURCE = "https://huggingface.co/Qwen/Qwen3-VL-2B-Instruct/blob/main/config.json"
"""Of the sizes below, which Qwen3-VL-Embedding-2B shares; read in what is published about that file, as this machine
had no way to it, and the same as those of pytorch/torchtitan, torchtitan/experiments/qwen3_vl/__init__.py, "2B"."""

TEXT_2B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000000.0,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
VISION_2B: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 2048,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
PIXELS_2B = (65_536, 786_432)  # bounds of an image, as in recipes/visdoc_lora.yaml: at most 768 tokens a page


def config_2b(tokenizer: Any) -> Qwen3VLConfig:
    token = tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        text_config=TEXT_2B | {"pad_token_id": token("<|endoftext|>"), "tie_word_embeddings": True},
        vision_config=VISION_2B,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def processor_2b() -> Qwen3VLProcessor:
    """The tests' tokenizer, which cuts at 512 tokens, let through a whole page."""
    tokenizer = tiny.qwen_tokenizer("left", chat=tiny.CHAT)
    tokenizer.model_max_length = 32_768
    shortest, longest = PIXELS_2B
    images = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": shortest, "longest_edge": longest},
    )
    processor = Qwen3VLProcessor(images, tokenizer, tiny.CHAT)
    processor.video_settings = tiny.VIDEO
    return processor


def build(folder: Path, small: bool) -> Path:
    """Writes the model into a folder and returns where it is: 4.3 GB (twice while it is written), or 1 MB.  On the CPU,
    so that this process holds nothing of the GPU."""
    if small:
        return tiny.qwen3vl(folder)
    processor = processor_2b()
    tokenizer = processor.tokenizer
    config = config_2b(tokenizer)
    config.dtype = torch.bfloat16
    model = Qwen3VLModel(config).to(torch.bfloat16)
    open_answer = {"chat_template": {"add_generation_prompt": True}}
    options = {"processing_kwargs": open_answer, "model_kwargs": {"dtype": "bfloat16"}}
    found = tiny.save(folder, model, processor, "lasttoken", **options)
    shutil.rmtree(folder / "raw")
    return found


def pages(folder: Path, count: int, small: bool) -> list[Path]:
    """So many pages with lines of text, as large as the pixel budget lets through; no two alike."""
    width, height = (96, 128) if small else (768, 1024)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        page = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(page)
        for line in range(8, height - 8, 16):
            words = " ".join(tiny.WORDS[(number * 7 + line * 3 + n) % len(tiny.WORDS)] for n in range(width // 48))
            pen.text((8, line), f"{number} {words}", fill="black")
        page.save(folder / f"{number}.png")
        found.append(folder / f"{number}.png")
    return found


def query(number: int) -> str:
    """About 24 words."""
    return f"{number} " + " ".join(tiny.WORDS[(number * 5 + n * 11) % len(tiny.WORDS)] for n in range(23))
