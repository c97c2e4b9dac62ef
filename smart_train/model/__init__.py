"""Encoders: one forward of a backbone, a pooled vector and a bag of tokens.  Knows no loss and no data set."""
