"""MTEB's batches as an encoder's contents, with the right prompt, embedded portion by portion.

Knows: MTEB's data loaders and task metadata, an encoder.  Does not know: scores, tasks' data, results.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from smart_train.embeddings import Embeddings
from smart_train.evaluation.encoding import IMAGE_BATCHES, TEXT_BATCHES
from smart_train.evaluation.metrics import EvaluationError
from smart_train.evaluation.prompting import prompted

if TYPE_CHECKING:
    from smart_train.model.encoder import SmartEncoder

logger = logging.getLogger(__name__)

READ = ("text", "image")  # what an encoder takes of a row; MTEB's other columns repeat the text or name it


class Inputs:
    """Reads what MTEB hands over for one encoder.

    task_prompts: None = the encoder's own prompts; else a template for MTEB's prompt of each task
    """

    def __init__(self, encoder: SmartEncoder, task_prompts: str | None) -> None:
        self.encoder, self.task_prompts = encoder, task_prompts
        self.told: set[str] = set()

    def loader(self, rows: Any, task: Any, kind: Any, options: Mapping[str, Any], workers: int | None) -> Any:
        """MTEB's own loader of a corpus or of queries: titles joined, instructions and conversations put in."""
        # Not in MTEB's public names, but what each of its own search wrappers uses: a copy here would drift from it.
        from mteb._create_dataloaders import create_dataloader

        size = options.get("batch_size", 32)
        return create_dataloader(rows, task_metadata=task, prompt_type=kind, batch_size=size, num_proc=workers)

    def embedded(
        self, loader: Any, task: Any, kind: Any, options: Mapping[str, Any], what: str
    ) -> Iterator[Embeddings]:
        """The rows of a loader, in portions; documents' tokens in float16, as ``evaluate`` keeps them.

        kind: MTEB's PromptType, None where a task has no sides
        what: said beside the progress bar, which is drawn on terminals
        """
        query = kind is not None and str(getattr(kind, "value", kind)) == "query"
        method = self.encoder.encode_queries if query else self.encoder.encode_documents
        size = options.get("batch_size", 32)
        kept: dict[str, Any] = {} if query else {"dtype": torch.float16}
        shown = options.get("show_progress_bar", True)
        with tqdm(total=len(loader.dataset), desc=what, leave=False, disable=None if shown else True) as bar:
            for contents in self._portions(loader, size, task.name):
                with self._prompted(task, kind):
                    found = method(contents, batch_size=size, **kept)
                bar.update(len(contents))
                yield Embeddings(found.pooled.float(), found.tokens)

    def _portions(self, loader: Any, size: int, name: str) -> Iterator[list[Any]]:
        waiting: list[Any] = []
        for batch in loader:
            waiting += self._contents(batch, name)
            batches = TEXT_BATCHES if isinstance(waiting[-1], str) else IMAGE_BATCHES
            if len(waiting) >= batches * size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _contents(self, batch: Mapping[str, Any], name: str) -> list[Any]:
        """Rows of a batch: text, image, or both."""
        seen = [key for key in READ if key in batch]
        if "image" in seen and "image" not in self.encoder.st.modalities:
            if "text" not in seen:
                raise EvaluationError(f"{name} has images, and {self.encoder.settings.base} has no image side")
            seen.remove("image")
            self._tell(
                f"{name}: {self.encoder.settings.base} has no image side; of images with a text, the text is read"
            )
        if not seen:
            raise EvaluationError(f"{name} has {', '.join(batch)}; an encoder reads text and images")
        if len(seen) == 1:
            return list(batch[seen[0]])
        return [{"text": text, "image": image} for text, image in zip(*(batch[key] for key in READ), strict=True)]

    def _prompted(self, task: Any, kind: Any) -> Any:
        """The task's prompt in place of the encoder's own, where that is wanted and there is one."""
        if self.task_prompts is None:
            return nullcontext()
        prompt, role = task.prompt, str(getattr(kind, "value", kind)) if kind is not None else None
        if isinstance(prompt, Mapping):
            prompt = prompt.get(role or "query")
        elif role == "document":  # a prompt without a side is the question's: what to retrieve
            prompt = None
        if not prompt:
            self._tell(f"{task.name} has no prompt for its {role or 'text'} side: the encoder's own stays")
            return nullcontext()
        whole = self.task_prompts.format(prompt=prompt)
        return prompted(self.encoder, **{"query" if role == "query" else "document": whole})

    def _tell(self, what: str) -> None:
        if what not in self.told:
            self.told.add(what)
            logger.warning("%s", what)
