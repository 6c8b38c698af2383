"""Pages of studies: each is drawn from the JSON that the study leaves, so that a folder is enough to draw it again."""
