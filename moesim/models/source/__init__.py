"""Where routing comes from: recordings and synthetic workloads."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
