"""Queries for pages: in the documents' own words, or written by a model."""
