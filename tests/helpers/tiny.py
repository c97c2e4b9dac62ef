"""Tiny random models of real architectures, as folders that sentence-transformers loads; and tiny data.

Every builder takes an empty folder, fills it offline in a second or two and returns its path.  Weights are random but
not the tiny ones a fresh model has: norms and biases are drawn too, so that leaving one out changes a vector.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from smart_train.models.processors import Qwen3VLProcessor, images_without_torchvision

WORDS = [
    "invoice",
    "total",
    "amount",
    "due",
    "yearly",
    "revenue",
    "by",
    "region",
    "table",
    "chart",
    "name",
    "of",
    "the",
    "company",
    "report",
    "harbour",
    "winter",
    "bridge",
    "garden",
    "copper",
    "violin",
    "lantern",
    "mountain",
    "river",
    "signal",
    "engine",
    "paper",
    "market",
    "window",
    "forest",
    "music",
    "kitchen",
    "orange",
    "silver",
    "stands",
    "between",
    "beside",
    "number",
    "and",
    "what",
    "page",
    "which",
    "find",
    "about",
]
SENTENCES = [
    "find the invoice with the total amount due",
    "a chart of yearly revenue by region",
    "What is the name of the company in the table?",
    "Represent the user's input.",
    "system user assistant query: document: image: page text retrieval embedding Instruct: Query:",
    " ".join(WORDS),
]
TEXTS = [
    "the invoice, with its total amount due",
    "chart",
    "a yearly revenue chart by region; the company's winter report names a harbour, a bridge and a copper engine.",
    "What is the name of the company in the table?",
    "violin lantern mountain",
]
PROMPTS = {"query": "Instruct: find the page that matches the query\nQuery: ", "document": ""}


def shake(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draws every weight anew: norms around 1, biases around 0, words far enough apart that texts differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            weight.data.copy_(1.0 + 0.2 * drawn if name.endswith("weight") else 0.05 * drawn)
        elif "word_embeddings" in name or "tok_embeddings" in name:
            weight.data.copy_(drawn)
        elif "embed" in name and weight.dim() == 2:  # of tokens in a decoder; of positions and types elsewhere
            weight.data.copy_(drawn * (0.5 if "embed_tokens" in name else 0.1))
        else:
            weight.data.copy_(drawn * weight[0].numel() ** -0.5)
    return model.eval()


def save(
    folder: Path,
    model: PreTrainedModel,
    processor: Any,
    pooling: str,
    prompts: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """Writes the model and its processor, then the modules that pool and normalise, as one folder."""
    raw = folder / "raw"
    model.save_pretrained(raw)
    processor.save_pretrained(raw)
    with images_without_torchvision():
        transformer = Transformer(str(raw), **options)
    width = transformer.get_embedding_dimension()
    modules = [transformer, Pooling(width, pooling), Normalize()]
    whole = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    whole.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def word_tokenizer(cls: str, sep: str, pad: str, mask: str, unk: str) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with a start and an end token around the text, as BERT and its descendants have."""
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    pieces = [pad, unk, cls, sep, mask, *letters, *[f"##{letter}" for letter in letters], *WORDS]
    vocabulary = {piece: row for row, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token=unk))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        cls_token=cls,
        sep_token=sep,
        pad_token=pad,
        mask_token=mask,
        unk_token=unk,
        model_max_length=128,
    )


def bert(folder: Path) -> Path:
    """Post-norm, mean pooling, no prompts: the shape of all-MiniLM-L6-v2."""
    tokenizer = word_tokenizer("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    return save(folder, shake(BertModel(config)), tokenizer, "mean")


def modernbert(folder: Path) -> Path:
    """Pre-norm with a final norm that is called ``final_norm``, cls pooling."""
    tokenizer = word_tokenizer("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]")
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        attn_implementation="sdpa",
    )
    return save(folder, shake(ModernBertModel(config)), tokenizer, "cls")


QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\\nRepresent the user\\'s input.<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{- message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' or 'image' in part -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part -%}{{- part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def qwen_tokenizer(padding_side: str, chat: str | None = None, close: bool = False) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer with Qwen's own normaliser, splitter and special tokens.

    close: put <|endoftext|> behind every text, as Qwen3-Embedding's tokenizer does (its pooled token).
    """
    own = Qwen2Tokenizer()._tokenizer
    core = Tokenizer(models.BPE())
    core.normalizer, core.pre_tokenizer, core.decoder = own.normalizer, own.pre_tokenizer, own.decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES * 20,
        trainers.BpeTrainer(vocab_size=512, special_tokens=[], initial_alphabet=alphabet, show_progress=False),
    )
    trained = json.loads(core.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=512,
        padding_side=padding_side,
    )
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in QWEN_SPECIAL])
    tokenizer.chat_template = chat
    if close:
        end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
        )
    return tokenizer


def qwen3(folder: Path, padding_side: str = "left") -> Path:
    """A pre-norm decoder with last-token pooling and a query instruction: the shape of Qwen3-Embedding."""
    tokenizer = qwen_tokenizer(padding_side, close=True)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return save(folder, shake(Qwen3Model(config)), tokenizer, "lasttoken", PROMPTS)


VIDEO = {
    "video_processor_type": "Qwen3VLVideoProcessor",
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": 131072, "longest_edge": 786432},
}


def qwen3vl(folder: Path) -> Path:
    """A vision-language decoder behind a chat template, last-token pooling: the shape of Qwen3-VL-Embedding."""
    tokenizer = qwen_tokenizer("left", chat=CHAT)
    token = tokenizer.convert_tokens_to_ids
    images = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128},
    )
    processor = Qwen3VLProcessor(images, tokenizer, CHAT)
    processor.video_settings = VIDEO
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    open_answer = {"chat_template": {"add_generation_prompt": True}}
    return save(folder, shake(Qwen3VLModel(config)), processor, "lasttoken", processing_kwargs=open_answer)
