"""Floor 2: pure functions of facts. No clock, no files."""
