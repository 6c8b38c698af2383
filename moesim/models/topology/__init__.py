"""Clusters: each topology draws a graph and flattens it to arrays."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
