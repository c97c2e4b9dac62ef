"""Data: whatever people have becomes a corpus, queries and qrels, by document id.

Knows: files, formats, splits, batches.  Does not know: models and losses.
"""
