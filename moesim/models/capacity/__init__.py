"""Capacity rules: how many rows an expert takes, and which routes are dropped."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
