"""The tables of docs/scaling.md: formulas of smart_train/planning/estimates.py for example models, worlds and widths.

    python tests/benchmarks/scaling_paper.py        # prints them as Markdown; a test holds the page against them

Nothing here is measured.  scaling.py says how far the formulas are from what processes hold and receive; the rates
below are assumptions, and times and shares follow from them alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from smart_train.planning.estimates import Engine, Rows, Weights, gather_volume, loss_embeddings, states, weights_volume
from smart_train.planning.launch_files import read_deepspeed, read_launch

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
RATE = 400e12  # operations a second of a GPU in bfloat16 products: an H100 at 40 % of its peak
INSIDE, BETWEEN = (
    300e9,
    40e9,
)  # bytes a second that a GPU receives: NVLink in a machine; 400 Gbit/s for each GPU outside
MAXSIM = RATE / 4  # its products are thin, and maxima are taken between them
SMALL = 0.05  # share of a step up to which a gather is cheap
WORLDS = (8, 64, 512)


@dataclass(frozen=True)
class Model:
    """operations: of a pair's forwards and backward, with gradient caching and activation checkpointing, frozen weights
    and LoRA: 8 a parameter and token (two forwards, one forward again, gradients of inputs)."""

    name: str
    rows: Rows
    operations: float
    widths: tuple[int, ...]


def _rows(query: int, document: int, pooled: int) -> Rows:
    return Rows(1, 1, 1, query, document, pooled, width=128, token_size=2)


PAGE = (
    Model(  # 1.41 G parameters in blocks, 820 tokens a pair; a frozen vision tower of 0.4 G, 3,000 patches, run twice
        "2B page model, T = 750", _rows(40, 750, 2048), 820 * 8 * 1.41e9 + 2 * 3000 * 2 * 0.4e9, (128, 320, 2048)
    )
)
TEXT = Model("0.6B text model, T = 256", _rows(32, 256, 1024), 288 * 8 * 0.44e9, (128, 320, 1024))


def share_of(model: Model, pairs: int, group: int, width: int | None) -> Rows:
    """One rank's rows; width None = pooled alone."""
    sizes = {"pairs": pairs, "queries": pairs, "documents": pairs, "group": group}
    return replace(model.rows, **sizes, width=width or 1, uses_tokens=width is not None)


def size(count: float) -> str:
    for unit, limit in (("kB", 1e6), ("MB", 1e9)):
        if count < limit:
            return f"{count / limit * 1e3:.3g} {unit}"
    return f"{count / 1e9:.3g} GB" if count < 1e11 else f"{count / 1e9:.0f} GB"


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*cells: object) -> list[str]:
    return [row(*cells), row(*("---" for _ in cells))]


# -- the tables -------------------------------------------------------------------------------------------------------


def a_document() -> Iterator[str]:
    """Bytes that a rank receives for one document of another rank, there and back."""
    yield from head("model", "pooled alone", "joint, d = 128", "joint, d = 320", "joint, whole width")
    for model in (PAGE, TEXT):
        found = (gather_volume(share_of(model, 1, 2, width)) for width in (None, *model.widths))
        yield row(model.name, *map(size, found))


def a_step(pairs: int = 64) -> Iterator[str]:
    """Bytes that a rank receives in a step."""
    yield from head("gathered among", "pooled alone", *(f"joint, d = {d}" for d in PAGE.widths), "DDP, LoRA")
    for world in WORLDS:
        found = [gather_volume(share_of(PAGE, pairs, world, width)) for width in (None, *PAGE.widths)]
        found.append(weights_volume(LORA, Engine("ddp", world)))
        yield row(f"{world} GPUs, batch {pairs * world:,}", *map(size, found))


def memory(pairs: int = 64) -> Iterator[str]:
    """Bytes of embeddings, gathered ones and gradients, of one rank, at their most."""
    yield from head("gathered among", *(f"joint, d = {d}" for d in PAGE.widths))
    for world in (1, *WORLDS):
        found = (sum(loss_embeddings(share_of(PAGE, pairs, world, width)).values()) for width in PAGE.widths)
        yield row(f"{world} GPU{'s' * (world > 1)}", *map(size, found))


LORA = Weights(2_127_532_032, 34_865_152, 2 * 2_127_532_032, 4 * 34_865_152, 50_340_000, 718_000_000)
FULL = Weights(0, 2_127_532_032, 0, 4 * 2_127_532_032, 50_340_000, 718_000_000)
ENGINES = {"ddp": "yaml", "zero2": "json", "zero3": "json", "fsdp2": "yaml"}


def held() -> Iterator[str]:
    """Bytes of weights, gradients and optimiser of one rank."""
    yield from head("launch file", *(f"LoRA, {w}" for w in WORLDS), *(f"every weight, {w}" for w in WORLDS))
    for name, kind in ENGINES.items():
        launch = (read_launch if kind == "yaml" else read_deepspeed)(LAUNCH / f"{name}.{kind}")
        engine = launch.engine(8, True, PAGE.rows.pooled)
        found = (states(of, replace(engine, world=w)) for of in (LORA, FULL) for w in WORLDS)
        yield row(f"`{name}.yaml`", *(size(one.total + one.step) for one in found))


def sharded(pairs: int = 64, world: int = 8) -> Iterator[str]:
    """Bytes of weights that a rank receives in a step, by ``objective.chunk_rows``: with gradient caching every chunk
    of queries and of documents is two forwards and a backward, and each collects the whole base."""
    rows = (8, 16, 32, 64)
    yield from head("launch file", *(f"`chunk_rows: {count}`" for count in rows))
    for name, engine in (("ddp", Engine("ddp", world)), ("zero3", Engine("zero", world, 3))):
        found = (weights_volume(LORA, engine, forwards=2 * 2 * pairs // count) for count in rows)
        yield row(f"`{name}.yaml`", *map(size, found))


def times(group: int = 8) -> Iterator[str]:
    """Seconds of a rank's step by pairs, and shares of MaxSim and gathers in it."""
    yield from head("pairs a GPU", *(f"d = {d}: seconds, MaxSim, gather" for d in (128, 2048)))
    for pairs in (16, 64, 256, 1024):
        cells = []
        for width in (128, 2048):
            of = share_of(PAGE, pairs, group, width)
            parts = (pairs * PAGE.operations / RATE, maxsim(of) / MAXSIM, gather_volume(of) / INSIDE)
            whole = sum(parts)
            cells.append(f"{whole:.2f}, {parts[1] / whole:.1%}, {parts[2] / whole:.1%}")
        yield row(pairs, *cells)


def maxsim(of: Rows) -> float:
    """Operations of the late score of all pairs; the backward touches winners alone, a tenth."""
    return 1.1 * 2 * of.tokens[0] * of.group * of.tokens[1] * of.width


def largest_group(model: Model, width: int | None, speed: float) -> int:
    """The most ranks that may gather while it stays below SMALL of the backbone's time:
    1 + SMALL (operations / RATE) speed / bytes of a document.  The number of pairs falls out."""
    return 1 + int(SMALL * model.operations / RATE * speed / gather_volume(share_of(model, 1, 2, width)))


def groups() -> Iterator[str]:
    yield from head("model", "links", "pooled alone", "joint, d = 128", "joint, d = 320", "joint, whole width")
    for model in (PAGE, TEXT):
        for name, speed in (("in a machine", INSIDE), ("between machines", BETWEEN)):
            found = (f"{largest_group(model, width, speed):,}" for width in (None, *model.widths))
            yield row(model.name, name, *found)


TABLES = (a_document, a_step, memory, held, sharded, times, groups)


def main() -> None:
    for table in TABLES:
        print(f"{table.__name__}\n", *table(), sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
