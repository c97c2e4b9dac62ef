"""Evaluate an encoder: encode, rank and measure its pooled, late and hybrid scores."""
