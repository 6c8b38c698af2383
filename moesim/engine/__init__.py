"""Floor 3: the only floor with a clock."""
