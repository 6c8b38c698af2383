"""Profiles of hypothesis. Daily work draws the same examples every time.

``pytest tests -k "l2 or l3 or l4 or l10 or l16" --hypothesis-profile=thorough`` draws 2,000 new ones of each.
"""

import signal

from examples import THOROUGH
from hypothesis import settings

settings.register_profile("daily", deadline=None, derandomize=True)
settings.load_profile("daily")
settings.register_profile("thorough", max_examples=THOROUGH, deadline=None, derandomize=False)

# A shell that starts this in the background may hand down signals that are ignored, and so would every process that a test starts and ends.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
