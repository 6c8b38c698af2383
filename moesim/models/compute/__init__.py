"""How long a GPU computes."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
