"""Floor 6: commands. Parse, call, print."""
