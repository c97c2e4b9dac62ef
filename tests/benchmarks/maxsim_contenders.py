"""One contender of tests/benchmarks/maxsim.py, in a process of its own.

    python maxsim_contenders.py NAME CASE.pt        then a line on stdin a repeat, a line of JSON on stdout each

Runs in the peers' environment, so smart_train is imported by our own contender alone.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

TEMPERATURE = 0.05
TOP = 100  # documents of a ranking
CHUNK = 128  # documents scored at once, exhaustively, by those who would hold all similarities


@dataclass
class Case:
    """queries: [sum Q, d], equal lengths; documents: [sum T, d]; training: with gradients, else exhaustive scoring."""

    queries: Tensor
    query_lengths: Tensor
    documents: Tensor
    document_lengths: Tensor
    training: bool

    def tiny(self) -> Case:
        """The first query and document: what loads libraries before memory is counted."""
        q, t = int(self.query_lengths[0]), int(self.document_lengths[0])
        return Case(
            self.queries[:q], self.query_lengths[:1], self.documents[:t], self.document_lengths[:1], self.training
        )

    def padded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """[B, Q, d], [N, T, d], and the document mask [N, T] where lengths differ."""
        q = self.queries.view(len(self.query_lengths), -1, self.queries.shape[1])
        lengths = self.document_lengths
        x = pad_sequence(list(self.documents.split(lengths.tolist())), batch_first=True)
        mask = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
        return q, x, None if bool(mask.all()) else mask


Scores = Callable[[], Tensor]
Prepared = tuple[list[Tensor], Scores]
"""What takes gradients, and what gives [B, N] mean scores."""


def leaves(case: Case, *tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_(case.training) for t in tensors]


def dense(case: Case, score: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Prepared:
    """For scorers of padded tensors that give sums."""
    q, x, mask = case.padded()
    q, x = leaves(case, q, x)

    def whole() -> Tensor:
        return score(q, x, mask) / q.shape[1]

    def chunked() -> Tensor:
        parts = [slice(n, n + CHUNK) for n in range(0, len(x), CHUNK)]
        return torch.cat([score(q, x[p], None if mask is None else mask[p]) for p in parts], 1) / q.shape[1]

    return [q, x], whole if case.training else chunked


def ours(case: Case) -> Prepared:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from smart_train.core.embeddings import Tokens
    from smart_train.losses.maxsim import maxsim

    q, x = leaves(case, case.queries, case.documents)
    return [q, x], lambda: maxsim(Tokens(q, case.query_lengths), Tokens(x, case.document_lengths))


def ranking(case: Case, narrowed: bool) -> Prepared:
    """Hybrid rankings of the best 100 through rank_views, pooled scores included.  What comes back are the late scores
    of ranked documents, and NaN of the others.  narrowed: as it is used; else by every score, with none ruled out."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from smart_train.config.schema import HybridBlock
    from smart_train.core.embeddings import Embeddings, Tokens
    from smart_train.evaluation.ranking import rank_views
    from smart_train.evaluation.scoring import tiles, view

    if case.training:
        raise ImportError("it ranks and has no gradients")
    sides = []
    for values, lengths in ((case.queries, case.query_lengths), (case.documents, case.document_lengths)):
        pooled = torch.randn(len(lengths), values.shape[1], generator=torch.Generator().manual_seed(1))
        sides.append(Embeddings(F.normalize(pooled, dim=-1), Tokens(values, lengths)))
    names = [[str(n) for n in range(len(side))] for side in sides]
    views = {"hybrid": view("hybrid", HybridBlock())}

    def scores() -> Tensor:
        every = None if narrowed else tiles(*sides)
        found = rank_views(*sides, *names, views, top=TOP, scored=every)["hybrid"]
        rows = [(int(q), int(x), score) for q, ranked in found.items() for x, score in ranked]
        query, document, score = (torch.tensor(column) for column in zip(*rows, strict=True))
        late = torch.full((len(sides[0]), len(sides[1])), torch.nan)
        late[query, document] = score - (sides[0].pooled[query] * sides[1].pooled[document]).sum(1)
        return late

    return [], scores


def einsum(case: Case) -> Prepared:
    def score(q: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        similarity = torch.einsum("bqd,ntd->bnqt", q, x)
        if mask is not None:
            similarity = similarity.masked_fill(~mask[None, :, None], -torch.inf)
        return similarity.amax(-1).float().sum(-1)

    return dense(case, score)


def bank(case: Case) -> Prepared:
    """The documents' tokens as one matrix, one product for all queries, the maximum over each document's columns."""

    def score(q: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        similarity = (q.flatten(0, 1) @ x.flatten(0, 1).t()).unflatten(1, x.shape[:2])
        if mask is not None:
            similarity = similarity.masked_fill(~mask, -torch.inf)
        return similarity.amax(-1).unflatten(0, q.shape[:2]).float().sum(1)

    return dense(case, score)


def sentence_transformers(case: Case, elements: int | None = None) -> Prepared:
    from sentence_transformers.util.similarity import maxsim

    if not case.training:
        q = list(case.queries.split(case.query_lengths.tolist()))
        x = list(case.documents.split(case.document_lengths.tolist()))
        return [], lambda: maxsim(q, x, chunk_elements=elements, length_normalize=True)
    return dense(case, lambda q, x, mask: maxsim(q, x, b_mask=mask, chunk_elements=elements))


def colpali(case: Case) -> Prepared:
    """Its padding is rows of zeros that take part in the maximum, as in its own training and scoring."""
    if "colpali_engine" not in sys.modules:
        found = importlib.util.find_spec("colpali_engine")
        if found is None or not found.submodule_search_locations:
            raise ImportError("No module named 'colpali_engine'")
        package = types.ModuleType("colpali_engine")  # its own __init__ imports every model, and torchvision with them
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["colpali_engine"] = package
    from colpali_engine.utils.maxsim import maxsim_inbatch

    return dense(case, lambda q, x, mask: maxsim_inbatch(q, x).float())


def pylate(case: Case) -> Prepared:
    from pylate.scores import colbert_scores

    if not case.training:  # a query at a time, as its rerank does
        q, x, mask = case.padded()
        many = len(x)
        ones = torch.ones(1, q.shape[1])
        there = torch.ones(many, x.shape[1]) if mask is None else mask.float()
        return [], lambda: torch.cat([colbert_scores(one[None], x, ones, there) for one in q]) / q.shape[1]

    def score(q: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        return colbert_scores(q, x, documents_mask=None if mask is None else mask.to(q.dtype)).float()

    return dense(case, score)


def kernels_reference(case: Case) -> Prepared:
    from late_interaction_kernels.reference import maxsim_reference

    return dense(case, lambda q, x, mask: maxsim_reference(q, x, d_mask=mask))


def maxsim_cpu(case: Case) -> Prepared:
    import maxsim_cpu as library

    if case.training:
        raise ImportError("it scores and has no gradients")
    q = [part.numpy() for part in case.queries.split(case.query_lengths.tolist())]
    x = [part.numpy() for part in case.documents.split(case.document_lengths.tolist())]

    def scores() -> Tensor:
        rows = [torch.as_tensor(library.maxsim_scores_variable(one, x)) for one in q]
        return torch.stack(rows) / case.query_lengths.unsqueeze(1)

    return [], scores


CONTENDERS: dict[str, tuple[Callable[[Case], Prepared], str]] = {
    "smart-train": (ours, "torch"),
    "smart-train, hybrid ranking": (lambda case: ranking(case, True), "torch"),
    "smart-train, hybrid ranking by every score": (lambda case: ranking(case, False), "torch"),
    "einsum": (einsum, "torch"),
    "bank": (bank, "torch"),
    "sentence-transformers": (sentence_transformers, "sentence-transformers"),
    "sentence-transformers, 4M-element chunks": (
        lambda case: sentence_transformers(case, 4 << 20),
        "sentence-transformers",
    ),
    "colpali-engine": (colpali, "colpali-engine"),
    "pylate": (pylate, "pylate"),
    "late-interaction-kernels, reference": (kernels_reference, "late-interaction-kernels"),
    "maxsim-cpu": (maxsim_cpu, "maxsim-cpu"),
}  # and the distribution whose version is reported


def memory(field: str) -> int:
    """Bytes, of this process' status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def measured(work: Callable[[], Tensor], inputs: list[Tensor]) -> tuple[dict[str, Any], Tensor]:
    """CPU seconds, wall seconds, and the highest resident memory above what was there before."""
    for leaf in inputs:
        leaf.grad = None
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory kept from the last repeat would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again at what is resident now
    before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    scores = work()
    found = {"seconds": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return found | {"peak_bytes": memory("VmHWM") - before}, scores


def working(prepared: Prepared, training: bool) -> Callable[[], Tensor]:
    inputs, score = prepared

    def work() -> Tensor:
        if not training:
            with torch.no_grad():
                return score()
        scores = score()
        target = torch.arange(scores.shape[0]) % scores.shape[1]
        F.cross_entropy(scores / TEMPERATURE, target).backward()
        return scores.detach()

    return work


def main() -> None:
    name, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    loaded = torch.load(path)
    reference = loaded.pop("reference")
    case = Case(**loaded)
    make, distribution = CONTENDERS[name]
    try:
        working(make(case.tiny()), case.training)()
        prepared = make(case)
    except ImportError as error:
        print(json.dumps({"absent": str(error)}), flush=True)
        return
    work = working(prepared, case.training)
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in prepared[0]) if case.training else 0
    print(json.dumps({"version": version(distribution), "gradient_bytes": gradients}), flush=True)
    for _ in sys.stdin:
        found, scores = measured(work, prepared[0])
        found["error"] = float((scores.double() - reference).abs().nan_to_num(0).max())
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
