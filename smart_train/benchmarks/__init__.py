"""Run public benchmarks: MTEB and MMEB-V2."""
