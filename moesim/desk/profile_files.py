"""Profiles as YAML files: the same bytes for the same profile, and messages with line and column for what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from moesim import __version__
from moesim.base.errors import CalibrationError, Problem, ScenarioError
from moesim.desk.folder import put
from moesim.desk.yaml_tree import parse_yaml
from moesim.facts.profile import Profile
from moesim.facts.profile_data import only, plain_profile, profile_of

LARGEST = 16 * 1024 * 1024
"""Bytes of a profile; a larger file is something else by mistake."""

DIGITS = 8
"""Significant digits of the numbers of a file: far beyond any measurement, and the same on machines whose last bits differ."""


def profile_text(profile: Profile) -> str:
    """Return a profile as YAML, one parameter and one row of the covariance a line."""
    data = _rounded(plain_profile(profile))
    body = yaml.dump(_flowed(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    return (
        f"# A profile of moesim {__version__}. Values are in SI units; docs/howto/calibrate-in-15-minutes.md says how to make one.\n{body}"
    )


def _rounded(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_rounded(value) for value in data]
    rounds = isinstance(data, float) and not data.is_integer()
    return float(f"{data:.{DIGITS - 1}e}") if rounds else data


def _digits(value: float) -> str:
    """Return a number with a point: PyYAML takes ``1e-08`` for text and would mark it."""
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


class _OneLine(dict[str, Any]):
    """A mapping on one line."""


class _Row(list[Any]):
    """A list on one line."""


def _flowed(data: Any) -> Any:
    if isinstance(data, dict):
        flat = all(not isinstance(value, (dict, list)) for value in data.values())
        made = {key: _flowed(value) for key, value in data.items()}
        return _OneLine(made) if flat and made else made
    if isinstance(data, list):
        items = [_flowed(value) for value in data]
        return items if any(isinstance(value, (dict, list)) for value in items) else _Row(items)
    return data


class _Dumper(yaml.SafeDumper):
    """Never writes anchors; numbers as Python writes them, which every reader of YAML 1.2 understands."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's contract
        return True


_Dumper.add_representer(_OneLine, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True))
_Dumper.add_representer(_Row, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True))
_Dumper.add_representer(float, lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:float", _digits(data)))


def parse_profile(text: str, name: str) -> Profile:
    """Read the text of a profile.

    Raises
    ------
    CalibrationError
        If it is not one; the message says what is wrong and, where it is known, in which line.
    """
    tree, problems = parse_yaml(text, name)
    if problems:
        raise CalibrationError("\n".join(str(problem) for problem in problems))
    if tree is None:
        raise CalibrationError(f"{name}: the file is empty; 'moesim calibrate' writes profiles")
    try:
        return profile_of(tree.data())
    except ValueError as error:
        raise CalibrationError(f"{name}: not a profile of 'moesim calibrate': {error}") from None


def read_profile(path: Path) -> Profile:
    """Read the file of a profile.

    Raises
    ------
    CalibrationError
        If it cannot be read or is no profile.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise CalibrationError(f"{path}: larger than {LARGEST // 1024**2} MiB: this is no profile")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise CalibrationError(f"{path}: the profile cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: byte {error.start} is not UTF-8; profiles are text") from None
    return parse_profile(text, str(path))


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile whole or not at all.

    Raises
    ------
    ResultError
        If it cannot be written.
    """
    put(path, profile_text(profile).encode())


def content_of_profile(path: str, prefix: str) -> tuple[Any, list[Problem]]:
    """Return the sections of a profile's file whose names begin with ``prefix``, for the loader of scenarios."""
    try:
        profile = only(read_profile(Path(path)), prefix)
    except (CalibrationError, ScenarioError) as error:
        return None, [Problem(message=str(error))]
    if not profile.sections:
        what = f" that begins with {' or '.join(map(repr, prefix.split('|')))}" if prefix else ""
        return None, [Problem(message=f"the profile {profile.name!r} has no section{what}")]
    return profile, []
