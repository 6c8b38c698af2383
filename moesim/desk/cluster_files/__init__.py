"""Descriptions of machines that other tools write, read into a :class:`~moesim.models.topology.wiring.Wiring`."""
