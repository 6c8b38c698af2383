"""Sphinx configuration. Build with: python -m sphinx -W -b html docs docs/_build/html"""

from moesim import __version__

project = "moesim"
author = "the authors of moesim"
release = __version__
version = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = "moesim"
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
html_copy_source = False
