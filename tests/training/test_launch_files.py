"""The files of launch/: what accelerate makes of them, what their runs say they are, and the Slurm script on two
stand-in machines.

Real launches are two processes on the CPU.  Few pairs of launch file and recipe run by default; the slow suite has
all of them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from launches import (
    CACHED,
    FEW,
    FOUR,
    LAUNCH,
    PAGES,
    RECIPES,
    ROOT,
    check_run,
    environment,
    program,
    run,
    words,
)
from ranks import free_port, run_ranks

from smart_train.checks.launch import check_launch
from smart_train.config.schema import Recipe
from smart_train.core.errors import written
from smart_train.models.encoder import SmartEncoder
from smart_train.models.hidden_states import find_blocks
from smart_train.training.arguments import training_arguments

ENGINES = {
    "single": "1 process on CPU, not distributed",
    "ddp": "2 processes on CPU, DDP",
    "fsdp2": "2 processes on CPU, DDP",  # accelerate has no FSDP on a CPU; the run says that, see below
    "zero2": "2 processes on CPU, DeepSpeed ZeRO-2",
    "zero3": "2 processes on CPU, DeepSpeed ZeRO-3",
    "zero3_offload": "2 processes on CPU, DeepSpeed ZeRO-3",
    "ddp_nodes": "2 processes on CPU, DDP",
    "zero3_nodes": "2 processes on CPU, DeepSpeed ZeRO-3",
    "cpu": "2 processes on CPU, DDP",
}
NODES = ("ddp_nodes", "zero3_nodes")
JSONS = ("zero2", "zero3", "zero3_offload")
TERMS = {"text_lora": {"pooled", "late"}, "visdoc_lora": {"pooled", "late"}, "visdoc_head": {"late"}}
TERMS |= {"visdoc_hybrid": {"hybrid"}, "quickstart": {"pooled", "late"}}


@pytest.fixture
def tiny(tiny_qwen3, tiny_qwen3vl, page_rows, triples_file):
    """tiny(recipe's name) -> the overrides that let it run here."""
    images = {"model.base": tiny_qwen3vl, "data.path": page_rows, **PAGES}
    rows = {"data.path": triples_file, "data.subset": "null", "data.query": "query", "data.document": "positive"}
    given = {
        "text_lora": {"model.base": tiny_qwen3, "data.negatives": 2, **rows, **CACHED},
        "visdoc_lora": {**images, **CACHED},
        "visdoc_hybrid": {**images, **CACHED},
        "visdoc_head": {**images, **FOUR, "late.dim": 32},
        "quickstart": {
            "data.test_documents": 30,
            "data.dev_documents": 30,
            "data.limit": 200,
            "model.document_tokens": 32,
        }
        | FOUR,
    }
    return lambda name: {**FEW, **given[name]}


# What accelerate reads -----------------------------------------------------------------------------------------------


def validated(name: str, *flags: str):
    command = ["--config_file", str(LAUNCH / f"{name}.yaml"), *flags, "recipe.yaml"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


def test_every_file_opens_with_when_to_use_it_what_it_costs_and_how_to_launch_it():
    yamls, scripts = sorted(LAUNCH.glob("*.yaml")), sorted(LAUNCH.glob("*.sh"))
    assert {path.stem for path in yamls} == set(ENGINES)
    assert {path.name for path in scripts} == {"slurm.sh", "torchrun.sh"}
    for path in (*yamls, *scripts):
        head = path.read_text().split("\n\n")[0]
        assert all(f"\n# {word:<8} " in head for word in ("When", "Costs", "Launch")), path.name
        assert "bytes per parameter" in head and str(path.relative_to(ROOT)) in head
    for name in JSONS:
        about = " ".join(json.loads((LAUNCH / f"{name}.json").read_text())["about"])
        assert "When:" in about and "Bytes per parameter" in about


def test_accelerate_reads_the_engine_and_takes_all_gpus_unless_told_otherwise():
    for name in ENGINES:
        load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # raises where a key is unknown
    for name in ("ddp", "fsdp2", *JSONS):
        found = validated(name)
        assert (found.num_processes, found.num_machines) == ("gpu", 1)
        kind = (found.multi_gpu, found.use_fsdp, found.use_deepspeed)
        assert kind == (name == "ddp", name == "fsdp2", name in JSONS)
        assert validated(name, "--num_processes", "3").num_processes == 3
    assert validated("fsdp2").fsdp_version == 2 and validated("fsdp2").fsdp_reshard_after_forward is True
    assert validated("single").num_processes == 1 and validated("cpu").num_processes == 2


def test_a_launch_over_machines_does_not_guess_how_many_processes_there_are():
    for name in NODES:
        with pytest.raises(ValueError, match="--num_processes"):
            validated(name)
        found = validated(name, "--num_processes", "16", "--num_machines", "4", "--machine_rank", "2")
        assert (found.num_processes, found.num_machines, int(found.machine_rank)) == (16, 4, 2)
    assert validated("zero3_nodes", "--num_processes", "16").deepspeed_multinode_launcher == "standard"


def test_files_leave_to_the_recipe_what_the_recipe_says():
    for path in LAUNCH.glob("*.yaml"):
        found = yaml.safe_load(path.read_text())
        assert "mixed_precision" not in found
        settings = found.get("deepspeed_config", {})
        assert not {"gradient_clipping", "gradient_accumulation_steps", "zero_stage"} & set(settings)
        if settings:
            assert (ROOT / settings["deepspeed_config_file"]).is_file()
    for name in JSONS:
        settings = json.loads((LAUNCH / f"{name}.json").read_text())
        sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        assert all(settings[key] == "auto" for key in (*sizes, "gradient_clipping"))
        assert settings["bf16"] == settings["fp16"] == {"enabled": "auto"}
        assert settings["zero_optimization"]["stage"] == int(name[4])


def filled(file: str) -> list[dict]:
    """On a rank: DeepSpeed's settings once a recipe's training block has filled them; named by the recipe, and by
    accelerate, whose processes find them in their environment."""
    from accelerate import Accelerator
    from transformers.integrations.deepspeed import propagate_args_to_deepspeed

    block = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.3, "bf16": True}
    args = training_arguments({**block, "use_cpu": True, "deepspeed": file}, Path("unused"))
    named = Accelerator(deepspeed_plugin=args.deepspeed_plugin).state.deepspeed_plugin.hf_ds_config.config
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": file}
    args = training_arguments({**block, "use_cpu": True}, Path("unused"))
    accelerator = Accelerator(deepspeed_plugin=args.deepspeed_plugin)
    propagate_args_to_deepspeed(accelerator, args)  # what Trainer does
    launched = accelerator.state.deepspeed_plugin.hf_ds_config.config
    return [{key: found[key] for key in FILLED} for found in (named, launched)]


FILLED = {
    "train_micro_batch_size_per_gpu": 3,
    "train_batch_size": 12,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.3,
    "bf16": {"enabled": True},
    "fp16": {"enabled": False},
}


def test_the_recipe_fills_batch_accumulation_clipping_and_precision():
    assert run_ranks(2, filled, str(LAUNCH / "zero3.json")) == [[FILLED, FILLED], [FILLED, FILLED]]


def test_fsdp2_wraps_every_block_of_any_base_without_naming_its_class(tiny_models):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    for kind in ("bert", "modernbert", "qwen3", "qwen3vl"):
        encoder = SmartEncoder(str(tiny_models(kind)), device="cpu")
        wrapped = fsdp2_prepare_auto_wrap_policy(plugin, encoder)
        blocks = find_blocks(encoder.backbone)[1]
        assert blocks and all(wrapped(block) for block in blocks), kind
        assert not wrapped(encoder) and not wrapped(encoder.backbone)


# What the recipe's check says of a launch ----------------------------------------------------------------------------


def told(monkeypatch, training: dict | None = None, batch: int | None = None, **variables: str) -> list[str]:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = Recipe(training=training or {})
    recipe.objective.batch = batch
    return [written(problem.message(recipe.where)) for problem in check_launch(recipe)]


@pytest.mark.parametrize("name", JSONS)
def test_the_shipped_settings_contradict_no_recipe(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    file = f"launch/{name}.json"
    training = {"gradient_accumulation_steps": 4, "max_grad_norm": 0.3, "bf16": True}
    launched = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": file}
    assert told(monkeypatch, training, WORLD_SIZE="2", **launched) == []
    assert told(monkeypatch, {**training, "deepspeed": file}, 12, WORLD_SIZE="2") == []
    assert told(monkeypatch, {**training, "deepspeed": file}, WORLD_SIZE="2", **launched) == []


def test_settings_that_contradict_the_recipe_are_told_with_file_and_key(monkeypatch, tmp_path):
    file = tmp_path / "mine.json"
    given = {"zero_optimization": {"stage": 4}, "gradient_clipping": 1.0, "train_micro_batch_size_per_gpu": 6}
    file.write_text(json.dumps(given | {"train_batch_size": 12, "fp16": {"enabled": True}, "scheduler": {}}))
    lines = told(monkeypatch, {"max_grad_norm": 0.5, "deepspeed": str(file)}, 12, WORLD_SIZE="4")
    assert lines == [
        f"{file}: zero_optimization.stage: is 4, which is no stage; "
        "write 2 to share gradients and moments, 3 weights too",
        f"{file}: train_micro_batch_size_per_gpu: is 6, but objective.batch's share is 3; "
        'write "auto": the recipe then decides',
        f'{file}: gradient_clipping: is 1.0, but training.max_grad_norm is 0.5; write "auto": the recipe then decides',
        f'{file}: fp16.enabled: is true, but training.fp16 is false; write "auto": the recipe then decides',
        f"{file}: scheduler: would replace what the recipe's training block sets (lr_scheduler_type); remove it there",
    ]


def test_accelerates_own_keys_are_held_against_the_recipe_too(monkeypatch):
    launched = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    assert told(monkeypatch, {"gradient_accumulation_steps": 2}, **launched) == []
    (line,) = told(monkeypatch, **launched, ACCELERATE_GRADIENT_CLIPPING="0.1")
    assert line.startswith("the launch file's deepspeed_config: gradient_clipping: is 0.1, but training.max_grad_norm")


def test_a_launch_whose_settings_are_not_where_it_was_started_is_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    launched = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "launch/zero2.json"}
    (line,) = told(monkeypatch, **launched)
    assert "there is no file launch/zero2.json" in line and "run the command from the folder above launch/" in line


def test_two_engines_or_two_precisions_at_once_are_told(monkeypatch):
    own = {"deepspeed": {"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}}
    assert told(monkeypatch, own) == []
    assert "would be ignored" in told(monkeypatch, own, ACCELERATE_USE_DEEPSPEED="true")[0]
    assert "launched with FSDP" in told(monkeypatch, own, ACCELERATE_USE_FSDP="true")[0]
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert told(monkeypatch, {"bf16": True}, ACCELERATE_MIXED_PRECISION="no") == []
    for launched, training in (("bf16", {}), ("fp16", {"bf16": True})):
        (line,) = told(monkeypatch, training, ACCELERATE_MIXED_PRECISION=launched)
        assert f"mixed_precision is {launched}" in line and "training.bf16" in line


# Real launches -------------------------------------------------------------------------------------------------------


def accelerated(name: str) -> list[str]:
    """The command for a launch file of one machine, on two processes where it leaves their number open."""
    more = ["--num_processes", "2"] if validated(name).num_processes == "gpu" else []
    port = [] if name == "single" else ["--main_process_port", "0"]  # 0 = a free one
    return [program("accelerate"), "launch", "--config_file", f"launch/{name}.yaml", *more, *port]


def ran(command: list[str], recipe: str, engine: str, output: Path, overrides: dict, **variables: str) -> str:
    """Runs a recipe and looks at what it says it is, and at what it left; returns what it printed."""
    arguments = [str(RECIPES / f"{recipe}.yaml"), *words({**overrides, "output": output})]
    printed = run([*command, *arguments], **variables)
    assert ENGINES[engine] in printed.splitlines(), printed[-3000:]
    assert ("FSDP was launched, but" in printed) == (engine == "fsdp2")
    check_run(output, printed, TERMS[recipe])
    return printed


@pytest.fixture
def machines(tmp_path) -> dict[str, str]:
    """Two machines under a Slurm that is a script: srun starts its command once for each, scontrol notes a requeue."""
    folder, notes = tmp_path / "slurm", tmp_path / "notes"
    folder.mkdir()
    notes.mkdir()
    scripts = {
        "srun": """
            while [[ $1 == -* ]]; do echo "$1" >>"$NOTES/srun"; shift; done
            pids=()
            for ((n = 0; n < SLURM_JOB_NUM_NODES; n++)); do SLURM_NODEID=$n "$@" & pids+=($!); done
            trap 'kill -TERM "${pids[@]}"' TERM
            worst=0
            for pid in "${pids[@]}"; do
              while :; do wait "$pid"; status=$?; kill -0 "$pid" 2>/dev/null || break; done
              [ "$status" -gt "$worst" ] && worst=$status
            done
            exit "$worst" """,
        "scontrol": """
            if [ "$1" = show ]; then printf '127.0.0.1\\nother\\n'; else echo "$*" >>"$NOTES/scontrol"; fi """,
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    numbers = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "PROCESSES": "1"}
    path = f"{folder}{os.pathsep}{environment()['PATH']}"
    names = {"SLURM_JOB_NAME": "try", "SLURM_JOB_NODELIST": "try[0-1]", "NOTES": str(notes), "PATH": path}
    return {**numbers, **names, "OUTPUT": str(tmp_path / "run")}


def test_zero2_by_accelerate(tiny, tmp_path):
    ran(accelerated("zero2"), "text_lora", "zero2", tmp_path / "run", tiny("text_lora"))


@pytest.mark.slow
def test_zero3_by_the_deepspeed_launcher(tiny, tmp_path):
    command = [program("deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    overrides = {**tiny("visdoc_lora"), "training.deepspeed": "launch/zero3.json"}
    ran(command, "visdoc_lora", "zero3", tmp_path / "run", overrides)


def test_two_processes_on_cpu_cores(tiny, tmp_path):
    ran(accelerated("cpu"), "visdoc_head", "cpu", tmp_path / "run", tiny("visdoc_head"))


@pytest.mark.slow
def test_zero3_on_two_machines_of_slurm(tiny, machines, tmp_path):
    slurm = {**machines, "CONFIG": "launch/zero3_nodes.yaml"}
    ran(["launch/slurm.sh"], "visdoc_hybrid", "zero3_nodes", tmp_path / "run", tiny("visdoc_hybrid"), **slurm)
    assert "--kill-on-bad-exit=1" in Path(machines["NOTES"], "srun").read_text().splitlines()
    assert not Path(machines["NOTES"], "scontrol").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(TERMS))
@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_launch_file_runs_every_recipe(tiny, machines, tmp_path, name, recipe):
    slurm = {**machines, "CONFIG": f"launch/{name}.yaml"} if name in NODES else {}
    command = ["launch/slurm.sh"] if name in NODES else accelerated(name)
    ran(command, recipe, name, tmp_path / "run", tiny(recipe), **slurm)


@pytest.mark.slow
@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_every_deepspeed_json_runs_by_other_launchers(tiny, tmp_path, launcher, name):
    port = str(free_port())
    deepspeed = [program("deepspeed"), "--num_gpus", "2", "--master_port", port]
    command = deepspeed if launcher == "deepspeed" else ["launch/torchrun.sh"]
    overrides = {**tiny("text_lora"), "training.deepspeed": f"launch/{name}.json"}
    ran(command, "text_lora", name, tmp_path / "run", overrides, PROCESSES="2")


# Slurm: stopped and queued again -------------------------------------------------------------------------------------


def submitted(machines: dict[str, str], run_of: str, *arguments: str, **variables: str) -> tuple[int, list[list[str]]]:
    """slurm.sh with a stand-in for accelerate: the script's exit status, and each machine's command in order."""
    notes, launcher = Path(machines["NOTES"]), Path(machines["PATH"].split(os.pathsep)[0], "accelerate")
    launcher.write_text(f'#!/bin/bash\necho "$@" >>"$NOTES/$SLURM_NODEID"\n{run_of}\n')
    launcher.chmod(0o755)
    for number in "01":
        (notes / number).unlink(missing_ok=True)
    variables = environment(**{**machines, **variables})
    done = subprocess.run(["launch/slurm.sh", *arguments], cwd=ROOT, env=variables, capture_output=True, timeout=60)
    commands = [(notes / number).read_text().split() for number in "01" if (notes / number).exists()]
    return done.returncode, commands


def test_the_slurm_script_starts_one_launcher_a_machine_and_passes_failures_on(machines):
    assert subprocess.run(["bash", "-n", "launch/slurm.sh"], cwd=ROOT).returncode == 0
    assert submitted(machines, "exit 0")[0] == 2  # without a recipe
    status, commands = submitted(machines, "exit 3", "recipes/x.yaml", "late.layer=[1, 2]", PROCESSES="8")
    assert status == 3 and len(commands) == 2
    for number, command in enumerate(commands):
        text = " ".join(command)
        assert "--config_file launch/ddp_nodes.yaml --num_machines 2 --num_processes 16" in text
        assert f"--machine_rank {number} --main_process_ip 127.0.0.1" in text
        assert text.endswith(f"recipes/x.yaml late.layer=[1, 2] output={machines['OUTPUT']}")
    assert not Path(machines["NOTES"], "scontrol").exists()  # a failed run is not queued again


def test_a_stopped_slurm_job_is_queued_again_and_goes_on_from_its_checkpoint(machines):
    output, queued = Path(machines["OUTPUT"]), Path(machines["NOTES"], "scontrol")
    save = 'mkdir -p "$OUTPUT/checkpoints/checkpoint-7"; touch "$_/checkpoint.json" "$OUTPUT/stopped.json"; exit 1'
    status, (first, _) = submitted(machines, save, "r.yaml")
    assert status == 0 and queued.read_text().split() == ["requeue", machines["SLURM_JOB_ID"]]
    again = "training.resume_from_checkpoint=true"
    assert again not in first
    status, (second, _) = submitted(machines, "exit 4", "r.yaml", SLURM_RESTART_COUNT="1")
    assert again in second
    assert status == 4 and len(queued.read_text().splitlines()) == 1, "the earlier stop counts no more"
    assert not (output / "stopped.json").exists()
    (_, (third, _)) = submitted(machines, "exit 0", "r.yaml", SLURM_RESTART_COUNT="1", OUTPUT=str(output / "new"))
    assert again not in third, "there is no checkpoint to go on from"


@pytest.mark.slow
def test_sigterm_to_a_slurm_job_saves_a_checkpoint_from_which_the_next_start_goes_on(tiny, machines, tmp_path):
    never = {"training.eval_steps": 5000, "training.save_steps": 5000, "evaluation.before": "false"}
    more = {"training.max_steps": 2000, **never}
    arguments = [str(RECIPES / "text_lora.yaml"), *words({**tiny("text_lora"), **more})]
    output = tmp_path / "run"
    log = output / "log.jsonl"
    with (tmp_path / "printed").open("w") as printed:
        job = subprocess.Popen(
            ["launch/slurm.sh", *arguments],
            cwd=ROOT,
            env=environment(**machines),
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
        try:
            until(lambda: log.is_file() and '"loss"' in log.read_text(), job)
            found = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True)
            os.kill(int(found.stdout.split()[0]), signal.SIGTERM)  # srun, which hands it to each machine's launcher
            assert job.wait(120) == 0, (tmp_path / "printed").read_text()[-4000:]
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    assert (output / "stopped.json").is_file() and not (output / "adapter").exists()
    assert Path(machines["NOTES"], "scontrol").read_text().startswith("requeue")
    (saved,) = (output / "checkpoints").glob("checkpoint-*")
    step = int(saved.name.removeprefix("checkpoint-"))
    rest = [*arguments, f"training.max_steps={step + 2}"]
    run(["launch/slurm.sh", *rest], **machines, SLURM_RESTART_COUNT="1")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if re.search('"loss"', line)]
    assert steps[-2:] == [step + 1, step + 2] and (output / "adapter" / "verified.json").is_file()


def until(there, job: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert job.poll() is None and time.monotonic() < end, "the run ended, or did not begin"
        time.sleep(0.2)
