"""Floor 0: units, errors, random streams, the plug-in registry, statistics. Knows nothing of clusters or experts."""
