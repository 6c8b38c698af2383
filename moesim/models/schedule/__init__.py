"""A step as a graph of tasks."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
