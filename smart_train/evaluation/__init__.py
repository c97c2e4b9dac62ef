"""Encode, rank and measure: which view of an encoder finds what."""
