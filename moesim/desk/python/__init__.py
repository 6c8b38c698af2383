"""Studies for scripts and notebooks: what ``moesim.compare`` and its siblings return; files are written when asked for."""
