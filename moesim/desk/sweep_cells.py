"""From a scenario file, its matrix and the words of a command line to the cells of a sweep."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moesim.base.errors import Problem, ScenarioError, UsageError
from moesim.desk.matrix import EXCLUDE, INCLUDE, LONGEST, Matrix, Setting, read_matrix, read_words, with_words
from moesim.desk.overrides import apply_overrides, lay_over
from moesim.desk.scenario_file import scenario_of, text_of, tree_of
from moesim.desk.study_cells import cell_from, read_trace
from moesim.desk.yaml_tree import Node
from moesim.facts.scenario import Scenario
from moesim.study.cell import Cell, Scalar
from moesim.study.sweep import combinations, short_names, word


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sweep before it is played.

    Parameters
    ----------
    file : str
        What the user called the scenario file.
    base : Scenario
        The scenario as written, with the whole matrix and with all overrides; not checked against its traces.
    axes : tuple of str
        Dotted keys: those of the matrix, then those that only included cells have.
    cells : tuple of mapping
        The settings of every cell by key.
    """

    file: str
    folder: Path
    base: Scenario
    axes: tuple[str, ...]
    cells: tuple[dict[str, Setting], ...]
    tree: Node
    written: Node

    def __len__(self) -> int:
        return len(self.cells)

    def place(self, index: int) -> dict[str, Scalar]:
        """Return where a cell stands: its value on each of its axes."""
        return {key: setting.label for key, setting in self.cells[index].items()}

    def name(self, index: int) -> str:
        """Return the name of a cell: the short names of its axes with their values."""
        short = short_names(self.axes)
        return ", ".join(f"{short[key]}={word(value)}" for key, value in self.place(index).items())

    def cell(self, index: int, *, tables: Iterable[str] = ()) -> Cell:
        """Read and check one cell.

        Raises
        ------
        ScenarioError
            With every problem of it; the place of a value is its line and column in the matrix, or the word of the command line.
        """
        return cell_from(self.scenario(index), name=self.name(index), axes=self.place(index), tables=tables)

    def scenario(self, index: int) -> Scenario:
        """Read and check one cell: as :meth:`cell`, but return what it means."""
        tree, problems = self.tree, []
        # What stands higher comes first: policy.capacity replaces the section of which policy.capacity.factor then sets a key.
        for key, setting in sorted(self.cells[index].items(), key=lambda item: item[0].count(".")):
            tree, wrong = lay_over(tree, key, setting.node, Scenario)
            problems += wrong
        return scenario_of(tree, self.written, folder=self.folder, problems=problems, read_trace=read_trace)


def plan_sweep(file: str | os.PathLike[str], words: Iterable[str] = ()) -> Plan:
    """Read a scenario file and the words of a command line as a sweep; no cell is read yet.

    Parameters
    ----------
    file : path
        Its ``matrix:`` gives axes, ``include`` and ``exclude``.
    words : iterable of str
        Axes and ordinary overrides, as :func:`moesim.desk.matrix.read_words` tells them apart.

    Raises
    ------
    ScenarioError
        With every problem of the file, its matrix and the words.
    UsageError
        If there are no axes, no cell is left, or there are too many.
    """
    shown = os.fspath(file)
    written, problems = tree_of(text_of(Path(file), shown), shown)
    axes, overrides, wrong = read_words(words)
    problems += wrong
    tree, wrong = apply_overrides(written, overrides, Scenario)
    problems += wrong
    matrix, wrong = read_matrix(tree.child("matrix"))
    problems += wrong
    matrix = with_words(matrix, axes, overrides)
    bare = tree.without("matrix", "compare")
    folder = Path(file).resolve().parent
    if problems:
        _raise_with_those_of_the_base(bare, written, folder, problems)
    if not matrix.axes and not matrix.include:
        raise UsageError(
            f"{shown} has no matrix, and no word of the command line has several values; "
            f"give some, for example policy.capacity.factor=1.0,1.25 or policy.capacity.factor=0.8..2.0:0.1"
        )
    cells = _cells_of(matrix)
    if not cells:
        raise UsageError(f"{shown}: exclude leaves no cell of the matrix")
    matrix = _with_what_excludes(matrix)
    base = scenario_of(bare.with_child("matrix", _node_of(matrix, tree)), written, folder=folder, fit=False)
    keys = tuple(dict.fromkeys([axis.key for axis in matrix.axes] + [key for cell in cells for key in cell]))
    return Plan(file=shown, folder=folder, base=base, axes=keys, cells=tuple(cells), tree=bare, written=written)


def _raise_with_those_of_the_base(tree: Node, written: Node, folder: Path, problems: list[Problem]) -> None:
    """Raise what is wrong with the words and the matrix, together with what is wrong with the rest of the file."""
    try:
        scenario_of(tree, written, folder=folder, problems=problems)
    except ScenarioError as error:
        raise ScenarioError(list(dict.fromkeys(error.problems))) from None


def _cells_of(matrix: Matrix) -> list[dict[str, Setting]]:
    count = 1
    for axis in matrix.axes:
        count *= len(axis.settings)
    if count + len(matrix.include) > LONGEST:
        raise UsageError(f"the matrix has {count + len(matrix.include):,} cells; a study takes {LONGEST:,} at most")

    def left_out(cell: dict[str, Setting]) -> bool:
        return any(_matches(excluded, cell) for excluded in matrix.exclude)

    found = list(combinations({axis.key: axis.settings for axis in matrix.axes}, left_out))  # type: ignore[arg-type]
    return [*found, *matrix.include]


def _matches(excluded: dict[str, Setting], cell: dict[str, Setting]) -> bool:
    return all(key in cell and cell[key].label == setting.label for key, setting in excluded.items())


def _with_what_excludes(matrix: Matrix) -> Matrix:
    """Return the matrix without exclusions that the command line has made pointless."""
    known = {axis.key: [setting.label for setting in axis.settings] for axis in matrix.axes}
    kept = [cell for cell in matrix.exclude if all(setting.label in known.get(key, []) for key, setting in cell.items())]
    return Matrix(matrix.axes, matrix.include, tuple(kept))


def _node_of(matrix: Matrix, tree: Node) -> Node:
    """Return a matrix as the value of ``matrix:``."""
    place = tree.place
    values = {axis.key: Node([setting.node for setting in axis.settings], axis.place, axis.place) for axis in matrix.axes}
    for name, cells in ((INCLUDE, matrix.include), (EXCLUDE, matrix.exclude)):
        if cells:
            items = [Node({key: setting.node for key, setting in cell.items()}, place, place) for cell in cells]
            values[name] = Node(items, place, place)
    return Node(values, place, place)
