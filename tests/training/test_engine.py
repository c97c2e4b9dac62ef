"""One process's side of the engines: rows come back in order, and what is set for a chunk is set back."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.training.engine import Engine, restore_order

CHUNKS = [{"input_ids": torch.arange(rows).view(-1, 1) + 10 * number} for number, rows in enumerate((2, 1, 3))]


def embed(order: list[int]) -> Embeddings:
    """Rows that say where they come from: row r of chunk c is 10 c + r, in r + 1 tokens."""
    ids = torch.cat([CHUNKS[number]["input_ids"] for number in order]).flatten()
    lengths = ids % 10 + 1
    return Embeddings(ids.float().view(-1, 1), Tokens(ids.repeat_interleave(lengths).float().view(-1, 1), lengths))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [0, 1, 2, 2], [2, 2, 1, 0, 0]])
def test_rows_of_a_plan_come_back_in_the_order_of_the_chunks(order):
    found, expected = restore_order(embed(order), order, CHUNKS), embed([0, 1, 2])
    assert torch.equal(found.pooled, expected.pooled)
    assert torch.equal(found.tokens.values, expected.tokens.values)
    assert torch.equal(found.tokens.lengths, expected.tokens.lengths)


def test_what_a_chunk_sets_is_set_back_even_where_it_fails():
    accelerator = Accelerator(cpu=True)
    engine, model = Engine(accelerator, nn.Linear(1, 1)), nn.Linear(1, 1)
    state = accelerator.gradient_state
    for synced in (True, False):
        state._set_sync_gradients(synced)
        for last in (False, True):
            with engine.around(model, last):
                assert accelerator.sync_gradients == (last and synced)
            assert accelerator.sync_gradients == synced
            with pytest.raises(KeyError), engine.around(model, last):
                raise KeyError
            assert accelerator.sync_gradients == synced
    state._set_sync_gradients(True)


def test_one_process_runs_what_it_has():
    engine = Engine(Accelerator(cpu=True), nn.Linear(1, 1))
    engine.sharded = True
    assert engine.plan(CHUNKS, cached=True) == [0, 1, 2]


def test_a_trained_vision_tower_is_noticed():
    tower = nn.ModuleDict({"visual": nn.Linear(1, 1), "text": nn.Linear(1, 1)})
    assert Engine(Accelerator(cpu=True), tower).by_kind
    tower["visual"].requires_grad_(False)
    assert not Engine(Accelerator(cpu=True), tower).by_kind
