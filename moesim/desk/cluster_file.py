"""The cluster alone: from a scenario, or from a file that holds nothing but a ``cluster:`` section."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from moesim.base.errors import ScenarioError, did_you_mean
from moesim.base.fields import Seed, Text, section
from moesim.base.registry import PluginOf
from moesim.desk.overrides import apply_overrides
from moesim.desk.scenario_file import Reading, text_of
from moesim.desk.shape import field_types
from moesim.desk.structure import problems_of, structure
from moesim.desk.yaml_tree import Place, parse_yaml
from moesim.facts.scenario import Scenario, Sharing


@section
@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """What a question about the network alone needs of a file.

    Parameters
    ----------
    name : str
        Of the question.
    seed : int
        Of the random numbers of skewed traffic.
    cluster : plug-in
        Links and routes.
    sharing : section
        How exactly links are shared.
    plugins : list of path
        Python files with topologies of your own, relative to the file.
    """

    name: Text = "network"
    seed: Seed = 0
    cluster: Annotated[Any, PluginOf("topology")]
    sharing: Sharing = field(default_factory=Sharing)
    plugins: tuple[str, ...] = ()


def load_cluster(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> ClusterFile:
    """Read the cluster of a file; other sections of a scenario may be there and are not looked at.

    Parameters
    ----------
    path : path
        Of a YAML file; paths inside it are relative to its folder.
    overrides : iterable of str
        ``cluster.nodes=4`` and so on, laid over the file in order; those of sections that are not looked at change nothing.

    Raises
    ------
    ScenarioError
        With every problem found, each with its place.
    """
    shown = os.fspath(path)
    tree, problems = parse_yaml(text_of(Path(path), shown), shown)
    if tree is None:
        raise ScenarioError(problems or [Place(shown).problem("", "the file is empty; it needs a section 'cluster:'")])
    if not isinstance(tree.value, dict):
        raise ScenarioError([*problems, tree.place.problem("", "expected a mapping with a section 'cluster:'")])
    reading = Reading(folder=Path(path).resolve().parent, must_exist=True, problems=problems)
    tree, wrong = apply_overrides(tree, overrides, Scenario)
    reading.problems += wrong
    known = list(field_types(Scenario))
    for key, child in tree.value.items():
        if key not in known:
            reading.problems.append(child.key.problem(key, f"unknown key {key!r}{did_you_mean(key, known)}"))
    tree = tree.without(*(key for key in tree.value if key not in field_types(ClusterFile)))
    tree = reading.with_files(reading.with_plugins(tree), ClusterFile)
    found, error = structure(ClusterFile, tree.data())
    if error is not None:
        reading.add(tree, problems_of(error, tree, ClusterFile))
    if error is not None or reading.problems:
        raise ScenarioError(reading.problems)
    return found  # type: ignore[no-any-return]
