"""An encoder's calls during an evaluation: timed, with a bar, and as many on every rank where ranks run together.

Knows: an encoder's two methods.  Does not know: collections, what ranks share, scores.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm

from smart_train.blocks import LateBlock
from smart_train.embeddings import Embeddings
from smart_train.evaluation.peers import Meetings

Batches = Iterable[Any]
Wrap = Callable[[Batches], Batches]
Opener = Callable[[], Any]


class Encoder(Protocol):
    late: LateBlock

    def encode_queries(self, contents: Sequence[Any], **options: Any) -> Any: ...

    def encode_documents(self, contents: Sequence[Any], **options: Any) -> Any: ...


class Forwards:
    """Calls an encoder; ``seconds`` has what it took: queries, documents."""

    def __init__(self, encoder: Encoder, meetings: Meetings, batch_size: int, progress: bool) -> None:
        self.encoder, self.meetings, self.batch_size, self.progress = encoder, meetings, batch_size, progress
        self.seconds = {"queries": 0.0, "documents": 0.0}

    def queries(self, texts: list[str], wrap: Wrap | None, spares: Sequence[str]) -> Embeddings:
        with clock(self.seconds, "queries"):
            return self._run(self.encoder.encode_queries, texts, wrap, [text.__str__ for text in spares])

    def documents(self, contents: list[Any], wrap: Wrap | None, spares: Sequence[Opener]) -> Embeddings:
        """Of contents of one kind where ranks run together; tokens in float16."""
        with clock(self.seconds, "documents"):
            found = self._run(self.encoder.encode_documents, contents, wrap, spares, dtype=torch.float16)
        return Embeddings(found.pooled.float(), found.tokens)

    def _run(
        self,
        method: Callable[..., Any],
        contents: list[Any],
        wrap: Wrap | None,
        spares: Sequence[Opener],
        **options: Any,
    ) -> Any:
        """One call.  Where forwards are collectives, a call that fails before a forward (an image that the processor
        refuses, say) still makes its forwards: the others wait in them, and cannot be told before they are through.

        spares: what gives contents of the same kind, should none of these be encodable
        A RuntimeError is what torch raises within a forward (out of memory, a rank that is gone): there is no way back
        into step then, so it is raised here alone, and the others end with their launcher or their timeout.
        """
        if not self.meetings.together:
            return method(contents, batch_size=self.batch_size, progress=wrap, **options)
        begun = 0

        def counted(batches: Batches) -> Batches:
            nonlocal begun
            for batch in wrap(batches) if wrap else batches:
                begun += 1
                yield batch

        with self.meetings.silent():
            try:
                return method(contents, batch_size=self.batch_size, progress=counted, **options)
            except RuntimeError:
                raise
            except Exception as error:
                failed = error
            left = math.ceil(len(contents) / self.batch_size) - max(0, begun - 1)
            own = [functools.partial(contents.__getitem__, at) for at in range(len(contents))]
            if not _make_up(lambda content: method([content], batch_size=1, **options), [*own, *spares], left):
                raise failed
        raise failed

    @contextmanager
    def bar(self, what: str, rows: int) -> Iterator[Wrap | None]:
        """One bar over several calls, on terminals only: a wrapper of the encoder's batches; None without progress."""
        if not self.progress:
            yield None
            return
        total = math.ceil(rows / self.batch_size)
        with tqdm(total=total, desc=f"encoding {what}", leave=False, disable=None) as bar:

            def counted(batches: Batches) -> Batches:
                for batch in batches:
                    yield batch
                    bar.update()

            yield counted


def _make_up(run: Callable[[Any], Any], openers: Sequence[Opener], left: int) -> bool:
    """Runs so many forwards of a single row, of the first content that can be run; whether there was one."""
    for opened in openers:
        try:
            content = opened()
            run(content)
        except RuntimeError:
            raise
        except Exception:  # the error to raise is the one before
            continue
        for _ in range(left - 1):
            run(content)
        return True
    return False


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds how long its block took."""
    begun = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
