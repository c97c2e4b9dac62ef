"""Encoders: one forward of a backbone gives a pooled vector and token vectors."""
