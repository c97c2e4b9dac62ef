"""The training loop: transformers.Trainer with the joint objective, and what it refuses to do silently."""
