"""Everything that knows of several processes: groups, gathers, signals, failures."""
