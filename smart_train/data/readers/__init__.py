"""Readers: one module per data format; base.py says what a reader is and chooses one."""
