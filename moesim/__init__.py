"""moesim: what a load-balancing policy of a Mixture-of-Experts model costs and gains, before it runs."""

from importlib.metadata import version

__version__ = version("moesim")
