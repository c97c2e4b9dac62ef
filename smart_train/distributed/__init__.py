"""Several processes: the process group, gathers, signals and failures."""
