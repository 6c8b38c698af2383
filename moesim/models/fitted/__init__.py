"""Models of measured quantities: one file each, with parameters that are fitted to tables.

A model is a frozen dataclass whose fields are its parameters in SI units. ``fit`` makes one from rows and their seconds, ``predict`` gives
the seconds of rows, ``section`` is what a profile keeps of it and ``of_section`` reads that back. Rows are
:data:`moesim.models.fitted.rows.Rows`; the numerics that models share are in :mod:`moesim.models.fitted.estimate`.

A plug-in of a scenario uses a fitted model by two fields. The loader puts what the named profile holds in place of its name, so that a
resolved scenario needs no other file; the name is that of a shipped profile, or a path that ends in ``.yaml``::

    profile: Annotated[str, ReadFile(reader="profile/expert_", into="fitted")] | None = None    # sections whose names begin with expert_
    fitted: ProfileField | None = None                                                         # moesim.facts.profile_data.ProfileField
"""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

from moesim.facts.arrays import Floats
from moesim.facts.profile import Section
from moesim.models.fitted.rows import Rows


@runtime_checkable
class Fitted(Protocol):
    """What every model of a measured quantity offers."""

    @classmethod
    def fit(cls, rows: Rows, seconds: Floats) -> Self:
        """Return the model that comes nearest to the rows; raise CalibrationError if they do not determine it."""
        ...

    @classmethod
    def of_section(cls, section: Section) -> Self:
        """Return the model that a profile holds."""
        ...

    def predict(self, rows: Rows) -> Floats:
        """Return the seconds of each row."""
        ...

    def section(self) -> Section:
        """Return what a profile keeps of the model."""
        ...
