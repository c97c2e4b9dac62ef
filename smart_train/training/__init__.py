"""The training loop: transformers.Trainer with the joint objective."""
