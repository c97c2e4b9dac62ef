"""Mathematics on embeddings: scores and losses.  Pure functions; imports embeddings.py and blocks.py alone of ours."""
