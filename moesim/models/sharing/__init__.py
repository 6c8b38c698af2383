"""Fair rates of flows on shared links: arithmetic without a clock."""
