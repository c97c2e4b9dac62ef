"""Training-free probing: which layer and which late weight."""
