"""Public benchmarks: MTEB and MMEB-V2."""
