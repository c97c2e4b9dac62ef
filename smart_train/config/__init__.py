"""Recipes: their schema, their YAML and typed values."""
