"""Files that the loader reads for a plug-in: the name of a reader, and what does the reading."""

from __future__ import annotations

from typing import Any

from moesim.base.errors import PluginError, Problem, did_you_mean

READERS = ("wiring", "placement", "expert_times", "ranks", "profile")
"""Words that :class:`~moesim.base.fields.ReadFile` may name; ``profile/WORD`` reads the sections of a profile that begin with WORD."""


def read_content(reader: str, path: str, keys: dict[str, Any]) -> tuple[Any, list[Problem]]:
    """Read a file for a plug-in.

    Parameters
    ----------
    reader : str
        One of ``READERS``.
    path : str
        Absolute.
    keys : dict
        The other keys of the section that names the file.

    Returns
    -------
    content : object
        None where there are problems.
    problems : list of Problem
        With the place in the file that was read.

    Raises
    ------
    PluginError
        If there is no such reader.
    """
    if reader == "wiring":
        from moesim.desk.cluster_files.read import read_wiring

        return read_wiring(path, keys)
    if reader == "placement":
        from moesim.desk.placement_files import read_placement

        return read_placement(path, keys)
    if reader == "expert_times":
        from moesim.desk.expert_times import read_expert_times

        return read_expert_times(path, keys)
    if reader == "ranks":
        from moesim.desk.rank_files import read_ranks

        return read_ranks(path, keys)
    if reader.partition("/")[0] == "profile":
        from moesim.desk.profile_files import content_of_profile

        return content_of_profile(path, reader.partition("/")[2])
    raise PluginError(f"a field wants its file read as {reader!r}{did_you_mean(reader, READERS)}")
