"""Real runs with PyTorch on whatever device is there: what the simulator is calibrated on and held against."""
