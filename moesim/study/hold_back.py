"""Validation on rows that were held back: every group of a table predicted from fits to all of its other groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.facts.profile import Profile
from moesim.models.fitted.rows import Rows
from moesim.study.calibrate import held_back
from moesim.study.measured import Measured
from moesim.study.validate import Validation, validate
from moesim.study.validation import Prediction, TableKind, table_kinds


@dataclass(frozen=True, slots=True)
class HoldingBack:
    """A kind of table whose predictions come from fits that did not see the group of the row; all else is the kind's."""

    kind: Any

    def __getattr__(self, name: str) -> Any:
        """Return what the kind has."""
        return getattr(self.kind, name)

    def predict(self, rows: Rows, profiles: Mapping[str, Profile]) -> Prediction:
        """Fit to all groups but one, predict that one; in turn."""
        groups = np.asarray(self.kind.group(rows))
        own = set(self.kind.fit(rows))
        if not own:
            found: Prediction = self.kind.predict(rows, profiles)
            return found
        return held_back(self.kind, rows, groups, profiles, own=own)


def validate_held_back(
    tables: Sequence[Measured],
    profiles: Mapping[str, Profile],
    *,
    kinds: Sequence[TableKind] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Validation:
    """Predict measured tables as :func:`moesim.study.validate.validate` does, each group from fits to the others of its table.

    Kinds that fit nothing (counting, links whose rates are known) are predicted as they always are.
    """
    known = table_kinds() if kinds is None else tuple(kinds)
    return validate(tables, profiles, kinds=[HoldingBack(kind) for kind in known], progress=progress)
