"""Collective operations as stages of transfers: rings, trees, hierarchies, one-shot."""
