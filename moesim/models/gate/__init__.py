"""How a router chooses experts from its scores."""

from moesim.base.registry import import_rooms

import_rooms(__name__, __path__)
