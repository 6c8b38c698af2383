"""The page of a comparison: variants side by side, on one scale."""
