"""Measures rankings: which view of an encoder finds what, and how sure that is.

Knows: qrels, rankings, embeddings.  Does not know: how an encoder or a collection is made.
"""
