"""The shaped testbed, predicted: what is sent in each case, and what the engine says how long that takes."""
