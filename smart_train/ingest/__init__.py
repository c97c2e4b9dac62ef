"""A folder of files becomes a corpus with queries."""
