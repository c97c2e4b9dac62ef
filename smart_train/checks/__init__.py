"""Check a recipe before anything is loaded: by itself, against its base, and against its data."""
