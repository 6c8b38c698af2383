"""Tables for pandas, where it is installed: nothing here needs it before somebody asks for a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def frame(columns: Mapping[str, Any], units: Mapping[str, str] | None = None, *, index: str | None = None) -> Any:
    """Return columns as a pandas data frame.

    Parameters
    ----------
    columns : mapping of str to sequence
        All of one length.
    units : mapping of str to str, optional
        Kept in ``.attrs["units"]``.
    index : str, optional
        The column that names the rows.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    ImportError
        If pandas is not installed; the message says how to get it.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("to_pandas needs pandas: pip install 'moesim[pandas]'") from None
    found = pd.DataFrame(dict(columns))
    if index is not None:
        found = found.set_index(index)
    if units:
        found.attrs["units"] = {name: unit for name, unit in units.items() if unit}
    return found
