"""Training and evaluation data: a corpus, queries and qrels, by document id."""
