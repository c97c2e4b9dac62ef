"""Launch files as doctor reads them: which engine over how many ranks; compared with what accelerate makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from smart_train.core.errors import LaunchError
from smart_train.planning.launch_files import default_file, read_deepspeed, read_launch, shipped

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def test_every_shipped_file_is_read_as_accelerate_reads_it():
    """Kind, processes and machines; with GPUs of one's own number."""
    assert shipped() == sorted(LAUNCH.glob("*.yaml")) and len(shipped()) == 9
    for path in shipped():
        found = read_launch(path)
        words = ["--config_file", str(path), *(["--num_processes", "8"] if found.machines > 1 else []), "recipe.yaml"]
        theirs = _validate_launch_command(launch_command_parser().parse_args(words))[0]
        kind = "DEEPSPEED" if theirs.use_deepspeed else "FSDP" if theirs.use_fsdp else None
        assert kind is None or found.kind == kind, path.name
        assert found.machines == theirs.num_machines
        if found.machines == 1:
            wanted = 4 if theirs.num_processes == "gpu" else theirs.num_processes
            assert found.ranks(4) == wanted, path.name


def test_the_engines_of_the_shipped_files():
    engines = {path.stem: read_launch(path).engine(4, half=True, hidden=100) for path in shipped()}
    assert {name: (one.kind, one.stage, one.world) for name, one in engines.items()} == {
        "single": ("ddp", 0, 1),
        "cpu": ("ddp", 0, 2),
        "ddp": ("ddp", 0, 4),
        "ddp_nodes": ("ddp", 0, 8),
        "fsdp2": ("fsdp", 0, 4),
        "zero2": ("zero", 2, 4),
        "zero3": ("zero", 3, 4),
        "zero3_nodes": ("zero", 3, 8),
        "zero3_offload": ("zero", 3, 4),
    }
    assert engines["zero3_offload"].offload_optimiser and engines["zero3_offload"].offload_weights
    assert engines["fsdp2"].sharded and engines["fsdp2"].wrapped and not engines["zero2"].sharded
    given = json.loads((LAUNCH / "zero3.json").read_text())["zero_optimization"].get("reduce_bucket_size", 500_000_000)
    assert engines["zero3"].bucket == (100 * 100 if given == "auto" else given)


def test_ranks_of_a_machine_share_its_memory():
    nodes = read_launch(LAUNCH / "ddp_nodes.yaml")
    assert nodes.machines == 2 and nodes.ranks(8) == 16 and nodes.ranks_per_machine(8) == 8
    assert read_launch(LAUNCH / "single.yaml").ranks_per_machine(8) == 1


def test_settings_within_accelerates_file_count_as_a_json_does(tmp_path):
    path = tmp_path / "mine.yaml"
    inside = {"zero_stage": 3, "offload_optimizer_device": "cpu", "offload_param_device": "none"}
    path.write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": inside}))
    engine = read_launch(path).engine(8, half=False)
    assert (engine.stage, engine.world, engine.offload_optimiser, engine.offload_weights) == (3, 2, True, False)
    wrap = {"fsdp_version": 2, "fsdp_offload_params": True}
    path.write_text(yaml.safe_dump({"distributed_type": "FSDP", "fsdp_config": wrap}))
    engine = read_launch(path).engine(8, half=True)
    assert engine.offload_weights and not engine.wrapped and engine.world == 8


def test_a_json_by_itself_is_deepspeed_on_all_gpus(tmp_path):
    path = tmp_path / "mine.json"
    zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 7}
    path.write_text(json.dumps({"zero_optimization": zero}))
    engine = read_deepspeed(path).engine(4, half=True)
    assert (engine.stage, engine.world, engine.bucket, engine.overlap) == (2, 4, 7, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read .*correct the path"),
        ("a: [", "correct that line"),
        ("- a\n", "it holds no block of keys; take one of launch/ as a model"),
        ("num_processes: 2\n", "it has no distributed_type; make one with: accelerate config"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: nowhere.json}\n",
            "there is no nowhere.json, which deepspeed_config_file names; correct it",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: zero3.json\n",
            "deepspeed_config is 'zero3.json', and has to be",
        ),
        ("distributed_type: FSDP\nfsdp_config: [2]\n", r"fsdp_config is \[2\], and has to be a block"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(text, said, tmp_path):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LaunchError, match=f"mine.yaml: .*{said}"):
        read_launch(path)


def test_sizes_that_are_left_to_deepspeed_are_its_own_and_a_no_without_quotes_is_one_process(tmp_path):
    path, plain = tmp_path / "mine.json", tmp_path / "plain.yaml"
    zero = {"stage": 3, "stage3_max_live_parameters": "auto", "reduce_bucket_size": "5e7", "offload_param": False}
    path.write_text(json.dumps({"zero_optimization": zero}))
    engine = read_deepspeed(path).engine(8, True, 64)
    assert (engine.live, engine.bucket, engine.offload_weights) == (1_000_000_000, 50_000_000, False)
    plain.write_text("distributed_type: NO\n")
    assert read_launch(plain).ranks(8) == 1


def test_no_default_file_is_no_error(monkeypatch, tmp_path):
    import accelerate.commands.config.config_args as theirs

    monkeypatch.setattr(theirs, "default_config_file", str(tmp_path / "none.yaml"))
    assert default_file() == ("", {})
