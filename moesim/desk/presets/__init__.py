"""Shipped descriptions that a scenario names."""
