"""A run deals other hard negatives in every epoch, and a resumed run those of the whole one."""

from __future__ import annotations

from smart_train.config.schema import AdapterBlock
from smart_train.data.collection import Collection, Document, hash_id

DATA = Collection(
    "c",
    {f"d{n}": Document(f"d{n}", f"word {n}") for n in range(16)},
    {f"q{n}": f"query {n}" for n in range(8)},
    {f"q{n}": {f"d{n}": 1} for n in range(8)},
    {f"q{n}": [f"d{m}" for m in range(8, 16)] for n in range(8)},
)


def watched(trainer) -> set[tuple[int, str, tuple[int, ...]]]:
    """(epoch, query, the negatives that are drawn for it), as a run collates them."""
    collate, seen = trainer.data_collator.collate, set()

    def record(rows):
        for row in rows:
            drawn = {*collate([row]).document_ids.tolist()} - {hash_id(row[1])}
            seen.add((row.epoch, row[0], tuple(sorted(drawn))))
        return collate(rows)

    trainer.data_collator.collate = record
    return seen


def test_every_epoch_deals_other_negatives_until_all_are_met_and_a_resume_goes_on(make, tmp_path):
    shape = {"num_train_epochs": 4, "max_steps": -1, "per_device_train_batch_size": 4, "save_strategy": "steps"}
    options = {"collection": DATA, "negatives": 2, "save_steps": 5, **shape}
    whole = make("bert", AdapterBlock("lora", r=2), **options)
    seen = watched(whole)
    whole.train()
    assert len(seen) == 4 * 8 and {epoch for epoch, _, _ in seen} == {0, 1, 2, 3}
    for query in DATA.queries:
        met = [one for _, asked, drawn in seen for one in drawn if asked == query]
        assert len(met) == len(set(met)) == 8
    (saved,) = tmp_path.rglob("checkpoint-5")
    resumed = make("bert", AdapterBlock("lora", r=2), **options)
    again = watched(resumed)
    resumed.train(resume_from_checkpoint=str(saved))
    assert again < seen and {one for one in again if one[0] == 3} == {one for one in seen if one[0] == 3}
    assert {epoch for epoch, _, _ in again} == {2, 3}  # it went on within the third epoch
