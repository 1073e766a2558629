"""A model's forward pass recorded as a graph."""
