"""Floor 5: files, screens, reports."""
