"""Mathematics on embeddings: scores and losses.  Pure functions; imports embeddings.py and nothing else of ours."""
