"""Profiles of hypothesis. ``pytest tests -k "l2 or l3 or l4 or l10 or l16" --hypothesis-profile=thorough`` draws 2,000 examples of each."""

from examples import THOROUGH
from hypothesis import settings

settings.register_profile("thorough", max_examples=THOROUGH, deadline=None)
