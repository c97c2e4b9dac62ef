"""Probe an encoder without training: choose a layer and a late weight."""
