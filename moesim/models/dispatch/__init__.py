"""Which replica of its expert a route uses."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
