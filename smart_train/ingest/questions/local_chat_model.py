"""Answer requests about pages with a chat model of transformers on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smart_train.core.errors import DataError, border
from smart_train.core.hub import check_answers, hub_errors, resolve_base
from smart_train.core.pictures import open_picture
from smart_train.ingest.image_files import shrink
from smart_train.ingest.questions.chat_model import Answer, Refusal, Request


class LocalChatModel:
    """A chat model of transformers: a vision-language model, or a language model where only texts are shown.

    model: a folder, a Hub id, or package:NAME/FOLDER
    batch_size: requests in one forward
    tokens: most tokens of an answer
    pixels: larger images are shrunk to this many pixels; None = never
    device: None = CUDA where there is a GPU, else the CPU
    dtype: auto (as it is stored), float32, bfloat16 or float16

    The first attempt decodes greedily; a repetition samples, with its number as the seed.
    Raises DataError for a model that transformers cannot load, or that has no chat template.
    """

    def __init__(
        self,
        model: str,
        *,
        batch_size: int = 4,
        tokens: int = 600,
        pixels: int | None = 1 << 20,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        if min(batch_size, tokens) < 1 or (pixels is not None and pixels < 1):
            raise DataError(f"batch_size, tokens and pixels must be 1 or more, not {batch_size}, {tokens} and {pixels}")
        self.model_name, self.batch_size, self.tokens, self.pixels = model, batch_size, tokens, pixels
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.processor, self.takes_images = _load(resolve_base(model), dtype)
        self.model.to(self.device).eval()

    @property
    def name(self) -> str:
        return f"{self.model_name} max_new_tokens={self.tokens} pixels={self.pixels}"

    def answer(self, requests: Sequence[Request]) -> list[Answer | Refusal]:
        """Answer requests, in their order; those with an image and those without are batched apart.

        Raises DataError for an image where the model is a language model.
        """
        answers: dict[int, Answer | Refusal] = {}
        for with_image in (True, False):
            rows = [row for row, request in enumerate(requests) if (request.image is not None) == with_image]
            if rows and with_image and not self.takes_images:
                raise DataError(
                    f"{self.model_name} takes no images; name a vision-language model, or ingest with --no-images"
                )
            for begin in range(0, len(rows), self.batch_size):
                batch = rows[begin : begin + self.batch_size]
                answers.update(zip(batch, self._answer_batch([requests[row] for row in batch]), strict=True))
        return [answers[row] for row in range(len(requests))]

    def _answer_batch(self, requests: list[Request]) -> list[Answer | Refusal]:
        inputs = self._inputs(requests).to(self.device)
        length = inputs["input_ids"].shape[1]
        attempt = requests[0].attempt
        sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.7} if attempt else {"do_sample": False}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(attempt)
            out = self.model.generate(**inputs, max_new_tokens=self.tokens, **sampling)
        prompt_tokens = inputs["attention_mask"].sum(1).tolist()
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        pad = tokenizer.pad_token_id
        answer_tokens = [int((row[length:] != pad).sum()) for row in out]
        texts = tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
        return [Answer(*row) for row in zip(texts, prompt_tokens, answer_tokens, strict=True)]

    def _inputs(self, requests: list[Request]) -> Any:
        """Return the features of one batch, padded on the left so that every answer begins where the prompts end."""
        chats = []
        for request in requests:
            content: Any = request.prompt
            if self.takes_images:
                content = [{"type": "text", "text": request.prompt}]
                if request.image is not None:
                    content.insert(0, {"type": "image", "image": self._image(request)})
            chats.append([{"role": "user", "content": content}])
        options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        options |= {"processor_kwargs": {"padding": True}} if self.takes_images else {"padding": True}
        return self.processor.apply_chat_template(chats, tokenize=True, **options)

    def _image(self, request: Request) -> Any:
        with border(request.image, "not a readable image; ingest the folder again"):
            image = open_picture(request.image)
        return shrink(image, self.pixels) if self.pixels else image


def _load(base: str, dtype: str) -> tuple[Any, Any, bool]:
    """Return (model, processor or tokenizer, whether it takes images). Raises DataError where it is no chat model."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from smart_train.models.processors import images_without_torchvision
    from smart_train.models.safe_loading import check_base_folder

    if Path(base).is_dir():
        check_base_folder(Path(base))
    else:
        with hub_errors(base):
            check_answers()
    try:
        config = AutoConfig.from_pretrained(base)
        takes_images = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        kind: Any = AutoModelForImageTextToText if takes_images else AutoModelForCausalLM
        model = kind.from_pretrained(base, dtype=dtype, use_safetensors=True)
        with images_without_torchvision():
            processor: Any = (AutoProcessor if takes_images else AutoTokenizer).from_pretrained(base)
    except (OSError, ValueError) as error:
        raise DataError(f"{base}: not a chat model that transformers can load ({error})") from error
    tokenizer = getattr(processor, "tokenizer", processor)
    if not getattr(processor, "chat_template", None) and not tokenizer.chat_template:
        raise DataError(f"{base} has no chat template; name an instruction-tuned model")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, processor, takes_images
