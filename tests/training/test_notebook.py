"""SmartTrainer in a notebook's kernel: one bar, an interrupt that saves, a second cell that resumes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import nbformat
import pytest
import tiny
from nbclient import NotebookClient

SETUP = """
import time
from transformers import TrainerCallback
from smart_train import SmartEncoder, SmartTrainer, TrainingArguments

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        open("steps", "w").write(str(state.global_step))
        time.sleep(0.5)

pairs = [{{"query": f"what {{a}}", "positive": f"the {{a}} stands"}} for a in {words!r}]

def trainer(*callbacks):
    model = SmartEncoder({base!r}, lora={{"r": 2}}, device="cpu")
    args = TrainingArguments("run", use_cpu=True, max_steps=6, per_device_train_batch_size=4, logging_steps=1)
    return SmartTrainer(model, args, pairs, callbacks=callbacks)
"""
BAR = "| step "


def shown(cell) -> str:
    """What the cell printed."""
    return "".join(one.text for one in cell.outputs if one.output_type == "stream")


def interrupt(client: NotebookClient, steps: Path) -> None:
    """Interrupt the kernel after the second step, as Jupyter's button does."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        if steps.is_file() and steps.read_text() >= "2":
            os.kill(client.km.provisioner.pid, signal.SIGINT)
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupt_in_a_notebook_saves_and_another_cell_resumes(tiny_bert, tmp_path):
    sources = (
        SETUP.format(words=tiny.WORDS[:12], base=str(tiny_bert)),
        "trainer(Slow()).train()",
        "trainer().train(resume_from_checkpoint=True)",
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client = NotebookClient(
        notebook, timeout=200, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    thread = threading.Thread(target=interrupt, args=(client, tmp_path / "steps"), daemon=True)
    thread.start()
    client.execute()
    thread.join()
    _, stopped, resumed = notebook.cells

    failed = [one for one in stopped.outputs if one.output_type == "error"]
    step = int((tmp_path / "steps").read_text())
    assert [one.ename for one in failed] == ["Preempted"] and 2 <= step < 6
    how = f"saved in run/checkpoint-{step}; resume with trainer.train(resume_from_checkpoint=True)"
    assert how in failed[0].evalue and (tmp_path / "run" / f"checkpoint-{step}").is_dir()
    assert "SIGINT: finishing and saving this step" in shown(stopped)
    assert f"{BAR}{step}/6" in shown(stopped)

    assert not [one for one in resumed.outputs if one.output_type == "error"]
    assert f"resumed from run/checkpoint-{step}, after step {step}" in shown(resumed)
    before, _, training = shown(resumed).partition("resumed from")
    assert BAR not in before, "the stopped run's bar is drawn again"
    lines = [line for line in training.replace("\r", "\n").splitlines() if BAR in line]
    assert lines and all(line.count(BAR) == 1 for line in lines) and f"{BAR}6/6" in lines[-1]
    assert "\x1b[A" not in training, "two bars are drawn, one below the other"
