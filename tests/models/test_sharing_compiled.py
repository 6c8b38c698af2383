"""How functions are compiled: once each, and anew when any file that belongs to them has changed."""

from pathlib import Path

import pytest
import simpy

from moesim.engine.chain import rehearse
from moesim.engine.fabric import Fabric
from moesim.models.sharing import bottleneck_groups, compiled, core, quanta_fill, quanta_time, rank_chains
from moesim.models.topology.nvlink_nodes import NvlinkNodes


@pytest.fixture
def played() -> None:
    rehearse(Fabric(simpy.Environment(), NvlinkNodes(nodes=1, gpus_per_node=2).build()))


def kept(module):
    """Return the functions of a module that are kept on disk, by name."""
    found = {name: getattr(value, "_cache", None) for name, value in vars(module).items()}
    return {name: cache._cache_file for name, cache in found.items() if hasattr(cache, "_cache_file")}


@pytest.mark.parametrize("module", [bottleneck_groups, quanta_fill, quanta_time, rank_chains])
def test_compiled_code_is_good_for_these_files_only(module) -> None:
    # A function of one file is a part of what functions of others were compiled to.
    functions = kept(module)
    assert functions
    for name, on_disk in functions.items():
        assert on_disk._source_stamp[1] == compiled._files(), name


def test_every_file_with_compiled_functions_is_watched() -> None:
    folder = Path(compiled.__file__).parent
    holders = {path.name for path in folder.glob("*.py") if "moesim.models.sharing.compiled import" in path.read_text(encoding="utf-8")}
    holders -= {"core.py", "groups.py"}  # these only ask what is on disk
    assert {name for name, _, _ in compiled._files()} == holders | {"compiled.py"}


def test_code_of_another_version_is_not_taken_from_disk(played, monkeypatch) -> None:
    assert compiled.is_on_disk(rank_chains.play)
    on_disk = rank_chains.play._cache._cache_file
    own, files = on_disk._source_stamp
    (name, time, size), *others = files
    monkeypatch.setattr(on_disk, "_source_stamp", (own, ((name, time + 1, size), *others)))
    assert not compiled.is_on_disk(rank_chains.play)
    assert core.needs_compiling()


def test_each_function_inside_others_is_compiled_for_one_combination_of_types(played) -> None:
    # A plain number in a call, or an element of a narrower array, is a type of its own and would be compiled for once more.
    many = {name: len(on_disk._load_index()) for module in (bottleneck_groups, rank_chains) for name, on_disk in kept(module).items()}
    assert many["_fill"] == many["_arrive"] == many["_meld"] == 1
    assert {name: count for name, count in many.items() if name.startswith("_") and count > 1} == {}
