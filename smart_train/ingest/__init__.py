"""Turn a folder of files into a corpus with queries."""
