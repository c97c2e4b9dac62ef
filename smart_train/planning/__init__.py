"""What a machine has, what a recipe needs, and what fits."""
