"""One package for everything that involves several processes: the process group, gathers, signals, failures."""
