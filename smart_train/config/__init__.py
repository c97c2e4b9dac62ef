"""The recipe: its schema, its YAML, and the checks that run before anything is loaded."""
