"""The scenario file: from its text to a frozen, checked :class:`~moesim.facts.scenario.Scenario`, or to all that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from moesim.base.errors import PluginError, Problem, ScenarioError
from moesim.base.registry import load_plugin_file
from moesim.desk.content import read_content
from moesim.desk.matrix import read_matrix
from moesim.desk.matrix_paths import with_absolute_paths
from moesim.desk.model_section import read_model
from moesim.desk.overrides import apply_overrides
from moesim.desk.shape import files_to_read, is_file, is_name, is_profile, parts
from moesim.desk.structure import Path, problems_of, structure
from moesim.desk.unknown_plugin import with_unknown
from moesim.desk.variants import inherited, with_variants
from moesim.desk.yaml_tree import Node, Place, dotted, parse_yaml
from moesim.facts.scenario import Scenario
from moesim.facts.trace import Trace

LONGEST = 4 * 1024 * 1024
"""Bytes of a scenario file. A larger file is something else by mistake, such as a trace."""


def load_scenario(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    *,
    check: bool = True,
    read_trace: Callable[..., Trace] | None = None,
) -> Scenario:
    """Read a scenario file.

    Parameters
    ----------
    path : path
        Of a YAML file; paths inside it are relative to its folder.
    overrides : iterable of str
        ``policy.capacity.factor=1.1`` and so on, laid over the file in order.
    check : bool
        Whether the files that it names must exist and its parts must fit together. Without, a scenario can be looked at on a machine
        that does not have its traces and plug-ins: no plug-in file is run, and of a plug-in that is not known by then an
        :class:`~moesim.desk.unknown_plugin.UnknownPlugin` keeps what the file says.
    read_trace : callable, optional
        Reads a trace for the check; by default the reader of trace files.

    Returns
    -------
    Scenario
        With every default filled in and absolute paths.

    Raises
    ------
    ScenarioError
        With every problem found, each with its place.
    PluginError
        If a plug-in is broken in a way that is no fault of the file.
    """
    shown = os.fspath(path)
    text = text_of(FilePath(path), shown)
    folder = FilePath(path).resolve().parent
    return read_scenario(text, file=shown, folder=folder, overrides=overrides, check=check, read_trace=read_trace)


def read_scenario(
    text: str,
    *,
    file: str,
    folder: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    check: bool = True,
    read_trace: Callable[..., Trace] | None = None,
) -> Scenario:
    """Read the text of a scenario; ``file`` is what problems call it. The rest is as in :func:`load_scenario`."""
    written, problems = tree_of(text, file)
    tree, wrong = apply_overrides(written, overrides, Scenario)
    return scenario_of(tree, written, folder=folder, problems=[*problems, *wrong], check=check, read_trace=read_trace)


def tree_of(text: str, file: str) -> tuple[Node, list[Problem]]:
    """Return the mapping that the text of a scenario holds, and the problems of its YAML.

    Raises
    ------
    ScenarioError
        If it holds none.
    """
    tree, problems = parse_yaml(text, file)
    if tree is None:
        raise ScenarioError(problems or [Place(file).problem("", "the file is empty; 'moesim init' writes one to start from")])
    if not isinstance(tree.value, dict):
        message = "a scenario is a mapping of keys such as 'name: ...'; 'moesim init' writes one to start from"
        raise ScenarioError([*problems, tree.place.problem("", message)])
    return tree, problems


def scenario_of(
    tree: Node,
    written: Node,
    *,
    folder: str | os.PathLike[str],
    problems: Iterable[Problem] = (),
    check: bool = True,
    fit: bool = True,
    read_trace: Callable[..., Trace] | None = None,
) -> Scenario:
    """Return the scenario of a tree; the rest is as in :func:`load_scenario`.

    Parameters
    ----------
    tree, written : Node
        With and without what was laid over it.
    problems : iterable of Problem
        What is known to be wrong already.
    fit : bool
        With ``check``, whether the parts must fit together; not needed of a scenario that was checked before.
    """
    reading = Reading(folder=FilePath(folder), must_exist=check, problems=list(problems))
    scenario, tree = reading.scenario(tree, written)
    if scenario is not None and check and fit and not reading.problems:
        reading.problems += _checked(scenario, tree, read_trace)
    if scenario is None or reading.problems:
        raise ScenarioError(reading.problems)
    return scenario


def text_of(path: FilePath, shown: str) -> str:
    """Return a file's text, or say in one problem why there is none."""
    place = Place(shown)
    try:
        with path.open("rb") as stream:
            content = stream.read(LONGEST + 1)
    except FileNotFoundError:
        raise ScenarioError([place.problem("", f"there is no such file{_nearby(path)}")]) from None
    except IsADirectoryError:
        raise ScenarioError([place.problem("", "this is a folder, not a scenario file")]) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ScenarioError([place.problem("", f"cannot be read: {reason.lower()}")]) from None
    if len(content) > LONGEST:
        raise ScenarioError([place.problem("", f"is larger than {LONGEST // 1024 // 1024} MiB: this is not a scenario file")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        place = Place(shown, before.count(b"\n") + 1, len(before) - before.rfind(b"\n"))
        message = f"the byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8 text"
        raise ScenarioError([place.problem("", message)]) from None


def _nearby(path: FilePath) -> str:
    import difflib

    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml"})
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"; did you mean {os.fspath(path.with_name(near[0]))!r}?" if near else ""


@dataclass(slots=True)
class Reading:
    """One reading of one file: collects problems while its parts become dataclasses."""

    folder: FilePath
    must_exist: bool
    problems: list[Problem] = field(default_factory=list)

    def scenario(self, tree: Node, written: Node) -> tuple[Scenario | None, Node]:
        """Return the scenario (None where there are problems) and the tree with paths resolved and variants whole.

        ``written`` is the tree before the overrides.
        """
        tree = self.with_plugins(tree)
        # Variants first: a partial section knows its kind, and so which of its keys are files, only from the base.
        tree = self.with_files(with_variants(tree, written), Scenario)
        tree = self.with_matrix(tree)
        if not self.must_exist:
            tree = with_unknown(tree, Scenario)
        data: dict[str, Any] = tree.data()
        model_node = tree.child("model")
        model = None
        if model_node is not None:
            model, wrong = read_model(self.with_config_path(model_node))
            self.problems += wrong
            data["model"] = model
        scenario, error = structure(Scenario, data)
        if error is not None:
            self.add(tree, [(path, problem) for path, problem in problems_of(error, tree, Scenario) if not _about_model(path, model_node)])
        return scenario, tree

    def add(self, tree: Node, found: Iterable[tuple[Path, Problem]]) -> None:
        """Keep problems, but not those that repeat: of a value already faulty as YAML, or of what a variant takes from the base."""
        taken = {(problem.file, problem.line, problem.column) for problem in self.problems if problem.line}
        said: set[tuple[Path, str]] = set()
        for path, problem in sorted(found, key=lambda item: item[0][:1] == ("compare",)):
            of_variant = path[:1] == ("compare",)
            if not of_variant:
                said.add((path[1:], problem.message))
            repeated = of_variant and ((path[2:], problem.message) in said or inherited(tree, path))
            if (problem.file, problem.line, problem.column) not in taken and not repeated:
                self.problems.append(problem)

    def with_plugins(self, tree: Node) -> Node:
        """Run the plug-in files, so that their kinds are known to all that follows; only make paths absolute of one just looked at."""
        listed = tree.child("plugins")
        if listed is None or not isinstance(listed.value, list):
            return tree
        resolved = [self.resolved(item, f"plugins.{index}") for index, item in enumerate(listed.value)]
        for index, item in enumerate(resolved):
            if self.must_exist and isinstance(item.value, str) and os.path.exists(item.value):
                try:
                    load_plugin_file(item.value)
                except PluginError as error:
                    self.problems.append(item.place.problem(f"plugins.{index}", str(error)))
        return tree.with_child("plugins", Node(resolved, listed.place, listed.key))

    def with_files(self, node: Node, annotation: Any, path: Path = ()) -> Node:
        """Return the tree with the path of every file absolute."""
        for step, inner, child in list(parts(annotation, node)):
            here = (*path, step)
            new = self.named_file(child, inner, dotted(here)) if is_file(inner) else self.with_files(child, inner, here)
            if new is not child and isinstance(step, str):
                node = node.with_child(step, new)
            elif new is not child:
                node = Node([new if index == step else item for index, item in enumerate(node.value)], node.place, node.key)
        return self.with_content(node, annotation, path)

    def named_file(self, node: Node, annotation: Any, path: str) -> Node:
        """Return a path as an absolute one; where a profile is wanted, the name of a shipped one will do."""
        if not (isinstance(node.value, str) and is_profile(annotation) and is_name(node.value)):
            return self.resolved(node, path)
        from moesim.desk.presets.profiles import profile_path

        try:
            return Node(str(profile_path(node.value)), node.place, node.key)
        except PluginError as error:
            self.problems.append(node.place.problem(path, str(error)))
            return node

    def with_matrix(self, tree: Node) -> Node:
        """Return the tree with the paths of files in its matrix absolute; without the matrix if that is faulty."""
        node = tree.child("matrix")
        if node is None:
            return tree
        _, wrong = read_matrix(node)
        self.problems += wrong
        if wrong or node.value is None:
            return tree.without("matrix")
        return tree.with_child("matrix", with_absolute_paths(node, tree, self.named_file))

    def with_content(self, node: Node, annotation: Any, path: Path) -> Node:
        """Return a section with what its files hold in place of their paths, where the loader is to read them."""
        for name, marker in files_to_read(annotation, node):
            file, given = node.child(name), node.child(marker.into)
            known = given is not None and given.value is not None
            if file is None or not isinstance(file.value, str) or known or not _is_file(FilePath(file.value)):
                continue  # the check of the section says what is wrong, unless it is only looked at
            content, wrong = read_content(marker.reader, file.value, node.without(name).data())
            here = dotted((*path, name))
            self.problems += [replace(problem, path=problem.path or here) for problem in wrong]
            if content is not None:
                node = node.without(name).with_child(marker.into, Node(content, file.place, file.key))
        return node

    def with_config_path(self, model: Node) -> Node:
        """Return the model's section with the path of its config absolute; null stands for a file that is not there (and was reported)."""
        config = model.child("config")
        if config is None:
            return model
        before = len(self.problems)
        resolved = self.resolved(config, "model.config", always=True)
        if not isinstance(config.value, str) or not config.value.strip():
            self.problems.append(config.place.problem("model.config", "expected the path of a Hugging Face config.json"))
        return model.with_child("config", Node(None, config.place, config.key) if len(self.problems) > before else resolved)

    def resolved(self, node: Node, path: str, *, always: bool = False) -> Node:
        """Return a path as an absolute one; a missing file is a problem.

        A path written on the command line may also be relative to the current folder, as everything else there is.
        """
        if not isinstance(node.value, str) or not node.value.strip():
            return node
        written = FilePath(node.value).expanduser() if node.value.startswith("~") else FilePath(node.value)
        folders = [self.folder] if node.place.line else [self.folder, FilePath.cwd()]
        candidates = [_absolute(folder / written) for folder in folders]
        found = next((candidate for candidate in candidates if _is_file(candidate)), None)
        if found is None and (self.must_exist or always):
            what = "is a folder, not a file" if candidates[0].is_dir() else "there is no such file"
            problem = node.place.problem(path, f"{node.value}: {what} (looked for {candidates[0]})")
            if not any(replace(other, path=path) == problem for other in self.problems):  # a variant repeats what it takes from the base
                self.problems.append(problem)
        return Node(str(found or candidates[0]), node.place, node.key)


def _absolute(path: FilePath) -> FilePath:
    """Return a path without ``..``; the file itself may be a link and keeps its name."""
    return path.parent.resolve() / path.name


def _is_file(path: FilePath) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False


def _about_model(path: Path, node: Node | None) -> bool:
    """Tell whether a complaint is about the model, which was read (and complained about) on its own."""
    return path[:1] == ("model",) and node is not None


def _checked(scenario: Scenario, tree: Node, read_trace: Callable[..., Trace] | None) -> list[Problem]:
    """Return what does not fit together, each with the place of the key it is about."""
    from moesim.desk import trace_files
    from moesim.engine.check import check

    return [_placed(problem, tree) for problem in check(scenario, read_trace or trace_files.read_trace)]


def _placed(problem: Problem, tree: Node) -> Problem:
    """Give a problem the place of the nearest key of its path that the file has."""
    node, words = tree, problem.path.split(".")
    if words[0] == "exchange" and node.child("exchange") is None:
        words = ["routing"]  # the default exchange cannot do with what the routing knows: that is where to look
    while words:
        taken = next((count for count in range(len(words), 0, -1) if node.child(".".join(words[:count])) is not None), 0)
        if not taken:
            break
        node, words = node.child(".".join(words[:taken])) or node, words[taken:]
    return (node.place if not words else node.key).problem(problem.path, problem.message)
