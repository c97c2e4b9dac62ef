"""Export, merge and publish adapters."""
