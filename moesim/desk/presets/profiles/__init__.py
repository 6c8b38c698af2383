"""Shipped profiles: fitted to ``tests/data/measured`` by one command, and read like anybody's."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from moesim.base.errors import PluginError, did_you_mean
from moesim.desk.profile_files import parse_profile
from moesim.facts.profile import Profile


@cache
def profile_presets() -> tuple[str, ...]:
    """Return the names of all shipped profiles, sorted."""
    found = (entry.name for entry in files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def profile_path(name: str) -> Path:
    """Return the file of a shipped profile.

    Raises
    ------
    PluginError
        If there is none of that name; the message names the nearest.
    """
    if name not in profile_presets():
        raise PluginError(f"unknown profile {name!r}{did_you_mean(name, profile_presets())}; a file of your own ends in .yaml")
    return Path(str(files(__package__))) / f"{name}.yaml"


@cache
def profile_preset(name: str) -> Profile:
    """Return a shipped profile.

    Raises
    ------
    PluginError
        If there is none of that name; the message names the nearest.
    """
    path = profile_path(name)
    return parse_profile(path.read_text(encoding="utf-8"), path.name)


def shipped_profiles() -> dict[str, Profile]:
    """Return every shipped profile by name, sorted."""
    return {name: profile_preset(name) for name in profile_presets()}
