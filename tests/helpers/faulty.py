"""The command ``smart-train`` with a fault on one rank: FAULT=KIND:RANK:STEP, a script for launchers.

exception, kill (SIGKILL), nan (its loss): in that step, and FAULT_FILE gets the time of it.  slow: steps that last.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from smart_train.cli.main import main


def spoil() -> None:
    from smart_train.core.environment import rank
    from smart_train.losses.joint import Loss
    from smart_train.training.trainer import SmartTrainer

    kind, of, at = os.environ["FAULT"].split(":")
    whole = SmartTrainer.training_step

    def training_step(self, model, inputs, num_items_in_batch=None):
        if kind == "slow":
            time.sleep(0.3)
        elif rank() == int(of) and self.state.global_step + 1 == int(at):
            Path(os.environ["FAULT_FILE"]).write_text(str(time.time()))
            if kind == "exception":
                raise ZeroDivisionError("a bug on one rank")
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            compute = self.step.loss

            def loss(both, batch):
                found = compute(both, batch)
                return Loss(found.total * float("nan"), found.parts)

            self.step.loss = loss
        return whole(self, model, inputs, num_items_in_batch)

    SmartTrainer.training_step = training_step


if __name__ == "__main__":
    spoil()
    sys.exit(main())
