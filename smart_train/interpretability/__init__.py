"""Similarity maps: which parts of a document its late score comes from."""
