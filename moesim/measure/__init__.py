"""Floor 2: metrics, each a function of the record of a run."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
