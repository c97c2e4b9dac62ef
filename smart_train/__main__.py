"""Run the command line: ``python -m smart_train`` and ``accelerate launch -m smart_train`` are ``smart-train``."""

import sys

from smart_train.cli.main import main

if __name__ == "__main__":  # spawned workers import this file again, under another name
    sys.exit(main())
