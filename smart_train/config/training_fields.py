"""What every field of transformers' TrainingArguments does here: honoured, refused, or nothing in a given run.

One table, which the checks read and docs/training.md shows.  A field that a new version of transformers brings belongs
in it: tests/config/test_training_fields.py fails until it is there, since a run records every value as used.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HONOURED: dict[str, dict[str, str]] = {  # group -> field -> what it changes
    "optimizer": {
        "learning_rate": "step size of what is trained, except for the head where head_learning_rate is given",
        "head_learning_rate": "step size of the late head and the layer mix",
        "optim": "the optimizer",
        "optim_args": "options of those optimizers that take some",
        "weight_decay": "decay of every trained weight but biases and norms",
        "adam_beta1": "Adam's first average",
        "adam_beta2": "Adam's second average",
        "adam_epsilon": "Adam's smallest denominator",
    },
    "schedule": {
        "lr_scheduler_type": "the shape of the learning rate over the run",
        "lr_scheduler_kwargs": "options of that shape",
        "warmup_steps": "steps, or their share below 1, in which the rate rises",
        "max_steps": "steps of the run, whatever the epochs",
        "num_train_epochs": "passes over the pairs",
    },
    "step": {
        "per_device_train_batch_size": "pairs of a loss in one process",
        "gradient_accumulation_steps": "losses of a step",
        "auto_find_batch_size": "a batch that does not fit is tried again at a smaller size",
        "max_grad_norm": "longest gradient, of the head and of the rest separately; 0 = any",
        "bf16": "computes in bfloat16",
        "fp16": "computes in float16, with a scaler",
        "tf32": "float32 products of a GPU in 19 bits",
        "activation_checkpointing": "computes activations again instead of keeping them",
        "activation_checkpointing_kwargs": "options of activation_checkpointing",
        "torch_empty_cache_steps": "frees the GPU's cache after so many steps",
        "seed": "first values of adapter and head, dropout, order of the pairs",
        "full_determinism": "deterministic kernels",
        "use_cpu": "trains on the CPU",
        "debug": "underflow_overflow: stops at the first module that gives no finite number",
    },
    "loader": {
        "data_seed": "order of the pairs, in place of seed",
        "dataloader_drop_last": "leaves out a last batch that is not full",
        "dataloader_num_workers": "processes that make batches",
        "dataloader_pin_memory": "page-locked memory on the way to a GPU",
        "dataloader_persistent_workers": "keeps these processes between epochs",
        "dataloader_prefetch_factor": "batches that each of them makes ahead",
        "dataloader_multiprocessing_context": "how they are started",
        "dataloader_in_order": "batches come in the order of the plan",
        "accelerator_config": "non_blocking and gradient_accumulation_kwargs of accelerate",
    },
    "log": {
        "logging_strategy": "when a line is logged",
        "logging_steps": "steps between two lines",
        "logging_first_step": "also logs the first step",
        "log_level": "of transformers' own messages",
        "log_level_replica": "the same on other ranks",
        "log_on_each_node": "whether the first rank of every machine logs",
        "disable_tqdm": "lines instead of a progress bar",
        "report_to": "trackers that get every line",
        "run_name": "the run's name in a tracker",
        "project": "the project's name in a tracker",
        "trackio_space_id": "where trackio sends its lines",
        "trackio_bucket_id": "where trackio keeps its files",
        "skip_memory_metrics": "false: logs memory at the end of training",
    },
    "evaluation": {
        "eval_strategy": "when the dev split is ranked",
        "eval_steps": "steps between two rankings",
        "eval_delay": "steps or epochs before the first",
        "eval_on_start": "also ranks before the first step",
    },
    "checkpoints": {
        "save_strategy": "when a checkpoint is written",
        "save_steps": "steps between two checkpoints",
        "save_total_limit": "newest checkpoints that are kept, beside the best",
        "save_only_model": "leaves out what a resume needs",
        "save_on_each_node": "writes on every machine",
        "load_best_model_at_end": "the best checkpoint is what the run saves",
        "metric_for_best_model": "the metric of the dev split that chooses it",
        "greater_is_better": "true; false is refused, for every metric larger is better",
        "resume_from_checkpoint": "goes on from a checkpoint; true = the newest",
        "ignore_data_skip": "a resumed run begins its epoch anew",
    },
    "launch": {
        "ddp_backend": "how processes talk",
        "ddp_timeout": "seconds that they wait for each other",
        "ddp_find_unused_parameters": "of DistributedDataParallel",
        "ddp_bucket_cap_mb": "of DistributedDataParallel",
        "ddp_broadcast_buffers": "of DistributedDataParallel",
        "ddp_static_graph": "of DistributedDataParallel",
        "fsdp": "shards the weights",
        "fsdp_config": "how",
        "deepspeed": "its configuration",
    },
}
_RANKED = "remove it: the dev split is ranked, with evaluation.batch_size, and no loss is computed on it"
_PRECISION = "remove it: documents are ranked in the precision of the model; model.dtype sets it"
_LIGER = "remove it: its kernels are for language models with a vocabulary's loss, and none of them would be used"
_TOKENS = "remove it: log.jsonl has tokens and tokens per second of every line"
REFUSED: dict[str, str] = {  # field -> what to write instead, or why to remove it
    "label_smoothing_factor": "remove it: it smooths a classifier's labels; the softmax here is over documents",
    "per_device_eval_batch_size": "write evaluation.batch_size",
    "eval_accumulation_steps": _RANKED,
    "prediction_loss_only": _RANKED,
    "batch_eval_metrics": _RANKED,
    "eval_do_concat_batches": _RANKED,
    "include_for_metrics": _RANKED,
    "eval_use_gather_object": _RANKED,
    "fp16_full_eval": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "length_column_name": "remove it: rows have no columns; data.length_groups groups documents of like length",
    "train_sampling_strategy": "remove it: data.length_window and data.source say which pairs share a batch",
    "do_train": "remove it: a recipe always trains",
    "do_eval": "write evaluation.before, evaluation.during, evaluation.after",
    "do_predict": "write evaluation.after",
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "neftune_noise_alpha": "remove it: its noise is for the embeddings of language models; model.dropout is noise",
    "use_cache": "remove it: it keeps keys and values for text that is generated, and nothing is generated here",
    "torch_compile": "remove it: rows of a batch have as many vectors as tokens, so each batch would be compiled anew",
    "torch_compile_backend": "remove it: see torch_compile",
    "torch_compile_mode": "remove it: see torch_compile",
    "optim_target_modules": "remove it: it is of GaLore and Apollo, which cannot have groups for head and backbone",
    "average_tokens_across_devices": "remove it: the loss is a mean over pairs, weighted by each rank's share already",
    "logging_nan_inf_filter": "remove it: a loss that is no finite number ends the run; see objective.skip_nonfinite",
    "include_num_input_tokens_seen": _TOKENS,
    "trackio_static_space_id": "write trackio_space_id",
    "enable_jit_checkpoint": "remove it: a run that gets a signal saves a checkpoint and ends, without this",
    "restore_callback_states_from_checkpoint": "remove it: a resumed run always restores them",
    "parallelism_config": "remove it: launch with a file of launch/ (DDP, FSDP, DeepSpeed)",
    "output_dir": "write output, at the recipe's top level",
    "remove_unused_columns": "remove it: batches here have no columns to remove",
    "label_names": "remove it: relevance comes from the qrels",
    "push_to_hub": "write publish.repo",
    "hub_model_id": "write publish.repo",
    "hub_private_repo": "write publish.private",
    "hub_strategy": "write publish.repo",
    "hub_always_push": "write publish.repo",
    "hub_revision": "write publish.repo",
    "hub_token": "remove it: a secret does not belong in a recipe; set HF_TOKEN",
    "local_rank": "remove it: the launcher sets it",
    "gradient_checkpointing": "it was renamed: write activation_checkpointing",
    "gradient_checkpointing_kwargs": "it was renamed: write activation_checkpointing_kwargs",
}
SET_BY_OTHERS = {  # that TrainingArguments or a Python program sets for its own ends: refused in a recipe alone
    *("do_train", "do_eval", "do_predict", "output_dir", "local_rank", "remove_unused_columns"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
}

# -- honoured, and without effect in a given run

_ALONE, _NO_GPU, _NO_TRACKER = "one process trains alone", "there is no GPU", "training.report_to names no tracker"


def _alone(args: Any) -> bool:
    return bool(args.world_size == 1)


def _no_gpu(args: Any) -> bool:
    return bool(args.device.type == "cpu")


def _untracked(args: Any) -> bool:
    return not args.report_to


def _no_trackio(args: Any) -> bool:
    return "trackio" not in args.report_to


def _strategy(name: str, *wanted: str) -> Callable[[Any], bool]:
    return lambda args: str(getattr(getattr(args, name), "value", getattr(args, name))) not in wanted


IDLE: dict[str, tuple[Callable[[Any], bool], str]] = {  # field -> (whether it does nothing, why)
    "num_train_epochs": (lambda args: args.max_steps > 0, "training.max_steps is given"),
    "activation_checkpointing_kwargs": (
        lambda args: not args.activation_checkpointing,
        "training.activation_checkpointing is off",
    ),
    "torch_empty_cache_steps": (_no_gpu, _NO_GPU),
    "dataloader_pin_memory": (_no_gpu, _NO_GPU),
    "tf32": (_no_gpu, _NO_GPU),
    "dataloader_in_order": (lambda args: args.dataloader_num_workers < 2, "fewer than two workers make batches"),
    "logging_steps": (_strategy("logging_strategy", "steps"), "training.logging_strategy is not steps"),
    "logging_first_step": (_strategy("logging_strategy", "steps", "epoch"), "training.logging_strategy is no"),
    "log_on_each_node": (_alone, _ALONE),
    "log_level_replica": (_alone, _ALONE),
    "run_name": (_untracked, _NO_TRACKER),
    "project": (_untracked, _NO_TRACKER),
    "trackio_space_id": (_no_trackio, "training.report_to does not name trackio"),
    "trackio_bucket_id": (_no_trackio, "training.report_to does not name trackio"),
    "eval_delay": (_strategy("eval_strategy", "steps", "epoch"), "training.eval_strategy is no"),
    "eval_on_start": (_strategy("eval_strategy", "steps", "epoch"), "training.eval_strategy is no"),
    "save_total_limit": (_strategy("save_strategy", "steps", "epoch", "best"), "training.save_strategy is no"),
    "save_only_model": (_strategy("save_strategy", "steps", "epoch", "best"), "training.save_strategy is no"),
    "save_on_each_node": (_alone, _ALONE),
    "ignore_data_skip": (lambda args: not args.resume_from_checkpoint, "no run is resumed"),
    "greater_is_better": (lambda args: args.metric_for_best_model is None, "metric_for_best_model is not given"),
    "fsdp_config": (lambda args: not args.fsdp, "training.fsdp is not given"),
    **{
        name: (_alone, _ALONE)
        for name in (
            *("ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
            "ddp_static_graph",
        )
    },
}


def without_effect(args: Any, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, why) of what a recipe's block ``training`` sets and this run has no use for."""
    for name in given:
        if name in IDLE and IDLE[name][0](args):
            yield name, IDLE[name][1]


def changed(args: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of every refused field of TrainingArguments that is not at its default."""
    for field in dataclasses.fields(args):
        if field.name in REFUSED and field.name not in SET_BY_OTHERS:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            value = getattr(args, field.name)
            if default is not dataclasses.MISSING and getattr(value, "value", value) != getattr(
                default, "value", default
            ):
                yield field.name, value


# -- docs/training.md

BEGIN, END = "<!-- fields: begin, of `python -m smart_train.config.training_fields` -->", "<!-- fields: end -->"


def tables() -> str:
    """Return the tables of docs/training.md."""
    rows = ["| key | changes | without effect, which the log says, where |", "|---|---|---|"]
    for group, fields in HONOURED.items():
        rows.append(f"| **{group}** | | |")
        rows += [f"| `{name}` | {text} | {IDLE[name][1] if name in IDLE else ''} |" for name, text in fields.items()]
    rows += ["", "Refused, since it would change nothing here, or something else does it:", ""]
    rows += ["| key | instead |", "|---|---|", *(f"| `{name}` | {fix} |" for name, fix in REFUSED.items())]
    return "\n".join(rows)


def page(text: str) -> str:
    """Return the page's text with its tables made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


def main(path: str) -> None:
    file = Path(path)
    file.write_text(page(file.read_text(encoding="utf8")), encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/training.md")
