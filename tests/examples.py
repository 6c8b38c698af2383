"""How many examples a property test draws: its own number in daily work, and 2,000 under the profile ``thorough``."""

from hypothesis import HealthCheck, settings

THOROUGH = 2000
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)


def examples(count: int) -> settings:
    """Settings for a law: ``count`` examples, or as many as the profile asks for if it is a thorough one."""
    asked = settings.default.max_examples
    return settings(max_examples=asked if asked >= THOROUGH else count, deadline=None, suppress_health_check=SLOW)
