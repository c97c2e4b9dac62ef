"""Similarity maps: why a document got its late score."""
