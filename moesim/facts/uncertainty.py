"""What a scenario says of the uncertainty of its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moesim.base.fields import Whole, section

MOST_DRAWS = 1000


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """Whether intervals contain what a profile does not know of its own parameters.

    Parameters
    ----------
    draws : int
        How often the run is repeated with the same tokens, each time with parameters that the measurements behind the profiles would have
        allowed as well; intervals become as wide as that. In a study of several seeds each seed has parameters of its own instead, the same
        for all variants. At most 1,000; 0 takes the parameters as if they were exact.
    """

    draws: Annotated[int, Whole(0, MOST_DRAWS)] = 20
