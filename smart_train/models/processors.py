"""Load Qwen-VL processors on machines without torchvision: images work, videos are refused.

transformers needs torchvision for *videos* only, but Qwen2-VL, Qwen2.5-VL, Qwen3-VL and what descends from them
cannot be loaded without their video processor.  Pages are images, and those have a Pillow backend that needs no
torchvision.  So where torchvision is missing, and only while a model is being loaded, AutoProcessor finds the classes
below instead: the same class without the video processor.  The settings of the video processor stay in what they
save, so that the folder loads whole wherever torchvision is installed.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor as WholeQwen2_5_VLProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor as WholeQwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor as WholeQwen3VLProcessor
from transformers.utils import cached_file, is_torchvision_available

from smart_train.core.bounded_json import load_json
from smart_train.core.errors import SmartTrainError

logger = logging.getLogger(__name__)

WHERE = ["cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder"]


class VideoRefused(SmartTrainError, ValueError):
    """A processor that was loaded without torchvision got a video."""


class ImagesOnly(ProcessorMixin):
    """Base of the three classes below; ProcessorMixin takes its parts from the signature of __init__."""

    video_settings: dict[str, Any] | None = None

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.video_settings = read_video_settings(pretrained_model_name_or_path, kwargs)
        report(cls.__name__)
        return processor

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        """As the whole processor; raises VideoRefused where there is a video."""
        if videos is not None:
            raise VideoRefused(
                f"this {type(self).__name__} was loaded without torchvision and takes no videos; "
                "install torchvision, or pass the video's frames as images"
            )
        return super().__call__(images=images, text=text, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        settings = super().to_dict()
        if self.video_settings is not None:
            settings["video_processor"] = self.video_settings
        return settings


@cache  # once a class and process; a run loads its base three times
def report(name: str) -> None:
    logger.warning(
        "torchvision is not installed: %s is loaded for images and text; videos are refused (pip install torchvision "
        "to have them)",
        name,
    )


def read_video_settings(base: Any, where: dict[str, Any]) -> dict[str, Any] | None:
    """Return the video processor's settings of a base; None where the base was published without.

    They are a part of processor_config.json since transformers 5, and a file of their own before.
    """
    where = {key: where[key] for key in WHERE if key in where}
    for name, part in (("processor_config.json", "video_processor"), ("video_preprocessor_config.json", None)):
        path = cached_file(base, name, _raise_exceptions_for_missing_entries=False, **where)
        if path is None:
            continue
        settings = load_json(Path(path).read_text(encoding="utf-8"))
        settings = settings if part is None else settings.get(part)
        if settings:
            return settings
    return None


# The names are the whole classes' own: they are written into processor_config.json and read back by AutoProcessor.
class Qwen2VLProcessor(ImagesOnly, WholeQwen2VLProcessor):
    """Qwen2VLProcessor without its video processor."""


class Qwen2_5_VLProcessor(ImagesOnly, WholeQwen2_5_VLProcessor):
    """Qwen2_5_VLProcessor without its video processor."""


class Qwen3VLProcessor(ImagesOnly, WholeQwen3VLProcessor):
    """Qwen3VLProcessor without its video processor; Qwen3.5 and its descendants use it too."""


FAMILIES = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}


@contextmanager
def images_without_torchvision() -> Iterator[None]:
    """Inside this block, AutoProcessor loads Qwen-VL processors also where torchvision is missing: for images only.

    Changes nothing where torchvision is installed, and nothing about other processors.  What was loaded inside stays
    usable afterwards, in this process and pickled in another.
    """
    if is_torchvision_available():
        yield
        return
    modules = {name: importlib.import_module(f"transformers.models.{name}") for name in FAMILIES}
    whole = {name: getattr(module, FAMILIES[name].__name__) for name, module in modules.items()}
    try:
        for name, module in modules.items():
            setattr(module, FAMILIES[name].__name__, FAMILIES[name])
        yield
    finally:
        for name, module in modules.items():
            setattr(module, FAMILIES[name].__name__, whole[name])
