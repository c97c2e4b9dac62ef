"""Shared by every other folder: embeddings, errors, atomic files, images, the Hub."""
