"""Scores and losses on embeddings, as pure functions on tensors."""
