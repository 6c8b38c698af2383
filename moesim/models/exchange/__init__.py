"""What bytes a layer asks of the fabric."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
