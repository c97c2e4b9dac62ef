"""Local models that are asked: one that writes questions about a page, and one that finds the page again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from smart_train.core.errors import DataError
from smart_train.core.hub import resolve_base
from smart_train.core.images import on_paper
from smart_train.data.collection import Collection, Document
from smart_train.ingest.questions.asking import Answer, Refusal, Request
from smart_train.ingest.questions.queries import Ranker

if TYPE_CHECKING:
    from smart_train.evaluation.encode import Encoder

logger = logging.getLogger(__name__)


class LocalAsker:
    """A chat model of transformers on this machine: a vision-language model, or for texts alone a language model.

    model: a folder, a Hub id, or package:NAME/FOLDER
    batch: requests in one forward; tokens: the most of an answer; pixels: an image is made smaller than this, or None
    device: None = the best there is; dtype: as it is stored ("auto"), or float32, bfloat16, float16

    The first attempt is greedy; a repetition samples, with its number as the seed.
    """

    def __init__(
        self,
        model: str,
        *,
        batch: int = 4,
        tokens: int = 600,
        pixels: int | None = 1 << 20,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        if min(batch, tokens) < 1 or (pixels is not None and pixels < 1):
            raise DataError("batch, tokens and pixels are 1 or more")
        self.model_name, self.batch, self.tokens, self.pixels = model, batch, tokens, pixels
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.processor, self.sees = _load(resolve_base(model), dtype)
        self.model.to(self.device).eval()

    @property
    def name(self) -> str:
        return f"{self.model_name} max_new_tokens={self.tokens} pixels={self.pixels}"

    @property
    def at_once(self) -> int:
        return self.batch

    def ask(self, requests: Sequence[Request]) -> list[Answer | Refusal]:
        """In the requests' order; those with an image and those without are batches of their own.

        Raises DataError for an image where the model is a language model.
        """
        found: dict[int, Answer | Refusal] = {}
        for shown in (True, False):
            places = [p for p, request in enumerate(requests) if (request.image is not None) == shown]
            if places and shown and not self.sees:
                raise DataError(f"{self.model_name} takes no images; ask about the text (show: text)")
            for begin in range(0, len(places), self.batch):
                some = places[begin : begin + self.batch]
                found.update(zip(some, self._batch([requests[p] for p in some]), strict=True))
        return [found[place] for place in range(len(requests))]

    def _batch(self, requests: list[Request]) -> list[Answer | Refusal]:
        inputs = self._inputs(requests).to(self.device)
        length = inputs["input_ids"].shape[1]
        attempt = requests[0].attempt
        choice: dict[str, Any] = {"do_sample": True, "temperature": 0.7} if attempt else {"do_sample": False}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(attempt)
            out = self.model.generate(**inputs, max_new_tokens=self.tokens, **choice)
        read = inputs["attention_mask"].sum(1).tolist()
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        pad = tokenizer.pad_token_id
        written = [int((row[length:] != pad).sum()) for row in out]
        texts = tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
        return [Answer(*row) for row in zip(texts, read, written, strict=True)]

    def _inputs(self, requests: list[Request]) -> Any:
        """Features of one batch, padded on the left so that every answer begins where the prompts end."""
        chats = []
        for request in requests:
            content: Any = request.prompt
            if self.sees:
                content = [{"type": "text", "text": request.prompt}]
                if request.image is not None:
                    content.insert(0, {"type": "image", "image": self._image(request)})
            chats.append([{"role": "user", "content": content}])
        options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        options |= {"processor_kwargs": {"padding": True}} if self.sees else {"padding": True}
        return self.processor.apply_chat_template(chats, tokenize=True, **options)

    def _image(self, request: Request) -> Any:
        from PIL import Image

        try:
            with Image.open(request.image) as opened:  # type: ignore[arg-type]
                image = on_paper(opened)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{request.image}: not a readable image ({error}); ingest the folder again") from error
        shrink = (self.pixels / (image.width * image.height)) ** 0.5 if self.pixels else 1.0
        if shrink < 1.0:
            image = image.resize((max(1, int(image.width * shrink)), max(1, int(image.height * shrink))))
        return image


def _load(base: str, dtype: str) -> tuple[Any, Any, bool]:
    """(model, processor or tokenizer, whether it takes images).  Raises DataError where it is no model that answers."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from smart_train.models.processors import images_without_torchvision

    try:
        config = AutoConfig.from_pretrained(base)
        sees = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        model = kind.from_pretrained(base, dtype=dtype)
        with images_without_torchvision():
            processor: Any = (AutoProcessor if sees else AutoTokenizer).from_pretrained(base)
    except (OSError, ValueError) as error:
        raise DataError(f"{base}: not a chat model that transformers loads ({error})") from error
    tokenizer = getattr(processor, "tokenizer", processor)
    if not getattr(processor, "chat_template", None) and not tokenizer.chat_template:
        raise DataError(f"{base}: it has no chat template, so it cannot be asked; use an instruction-tuned model")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, processor, sees


def base_ranker(
    encoder: Encoder, corpus: Mapping[str, Document], top: int = 10, mode: str = "hybrid", batch_size: int = 32
) -> Ranker:
    """The ranker of ``questions.round_trip`` that a base model is: query texts -> ids of the first ``top`` documents.

    The corpus goes by in portions, as in ``evaluate``: memory is one portion and the queries.
    """
    from smart_train.evaluation.encode import encode
    from smart_train.evaluation.ranking import rank

    def ranked(texts: Sequence[str]) -> list[list[str]]:
        some = next(iter(corpus))  # evaluation encodes judged queries; what they are judged by is not looked at
        queries = {f"round trip {place}": text for place, text in enumerate(texts)}
        asked = Collection("round trip", dict(corpus), queries, {query: {some: 1} for query in queries})
        encoded = encode(encoder, asked, batch_size=batch_size, keep=False)
        device = getattr(encoder, "device", None)
        found = rank(
            encoded.queries,
            encoded.documents,
            encoded.query_ids,
            encoded.document_ids,
            mode,
            encoder.late.hybrid,
            top=top,
            device=device,
        )
        return [[document for document, _ in found[query]] for query in queries]

    return ranked
