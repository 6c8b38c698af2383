"""A scenario as YAML with every default written out, and the digest of its meaning."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import yaml

from moesim import __version__
from moesim.desk import yaml_core
from moesim.desk.plain_data import plain_data, relative_to
from moesim.facts.scenario import Scenario


def dump(scenario: Scenario, *, folder: str | os.PathLike[str] | None = None) -> str:
    """Write a scenario as YAML that loads back equal (law L13).

    Parameters
    ----------
    scenario : Scenario
        As loaded.
    folder : path, optional
        Where the text will stand: paths of files are written relative to it. Without, they stay absolute.

    Returns
    -------
    str
        Every default is written out, quantities with their units, plug-ins with their kind first. The first line says which version
        of moesim wrote it.
    """
    path_text = relative_to(folder)
    data = plain_data(scenario, Scenario, path_text)
    data["plugins"] = [path_text(path) for path in scenario.plugins]
    body = yaml.dump(_flowed(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
    return f"# Resolved by moesim {__version__}: every default is written out.\n{body}"


def digest(scenario: Scenario) -> str:
    """Return the SHA-256 of what a scenario means, hexadecimal.

    Paths of files do not count, since the same file may lie anywhere: the content of a trace has a digest of its own. Nor do the
    paths of plug-in files, nor the order of keys; the order of ``compare`` does, since its first variant is the baseline.
    """
    data = plain_data(scenario, Scenario, lambda _: "")
    for no_part_of_a_run in ("plugins", "plan", "sensitivity"):
        data.pop(no_part_of_a_run)
    data["compare"] = list(data["compare"].items())
    if not scenario.matrix:
        data.pop("matrix")  # a scenario without one means what it meant before there were any
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Row(list[Any]):
    """A list of scalars, written on one line."""


def _flowed(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _flowed(value) for key, value in data.items()}
    if isinstance(data, list):
        items = [_flowed(item) for item in data]
        return items if any(isinstance(item, (dict, list)) for item in items) else _Row(items)
    return data


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something other than text; never writes anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's contract
        return True


def _row(dumper: yaml.SafeDumper, row: _Row) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", row, flow_style=True)


def _words(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Write text; with line breaks of any script in double quotes, since the other styles fold some of them into spaces."""
    breaks = any(character in text for character in "\n\r\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


_Dumper.add_representer(_Row, _row)
_Dumper.add_representer(str, _words)
for _word, _pattern in (("null", yaml_core.NULL), ("bool", yaml_core.BOOL), ("int", yaml_core.INT), ("float", yaml_core.FLOAT)):
    # None: try the pattern whatever the first character is. Anchored, because the resolver only looks at the start.
    _Dumper.add_implicit_resolver(yaml_core.TAG + _word, yaml_core.anchored(_pattern), None)
