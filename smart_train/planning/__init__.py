"""Plan a run: inspect the machine, estimate what a recipe needs, and report what fits."""
