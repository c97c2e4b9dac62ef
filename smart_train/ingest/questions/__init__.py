"""Queries for pages: in the documents' own words, or asked by a model."""
