"""Kinds of measured tables: one file each; a new file is a new kind.

The contract stands in :mod:`moesim.study.validation.table_kind`. :func:`table_kinds` imports every file of this room once.
"""

from __future__ import annotations

from moesim.base.registry import import_rooms
from moesim.study.validation.table_kind import TABLE_KINDS, Prediction, TableKind, prediction, register_table

__all__ = ["Prediction", "TableKind", "prediction", "register_table", "table_kinds"]


def table_kinds() -> tuple[TableKind, ...]:
    """Return every kind of table, sorted by name."""
    import_rooms(__name__, __path__)
    return tuple(sorted(TABLE_KINDS, key=lambda kind: kind.name))
