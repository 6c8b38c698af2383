"""moesim: what a load-balancing policy of a Mixture-of-Experts model costs and gains, before it runs."""

__version__ = "0.1.0"
