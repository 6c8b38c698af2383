"""Node-link JSON, as ``networkx.node_link_data`` and d3 write it."""

from __future__ import annotations

import json
from typing import Any

from moesim.desk.cluster_files.attributes import Found, wiring_from
from moesim.desk.cluster_files.faults import Source
from moesim.models.topology.wiring import Wiring


def read(source: Source) -> Wiring:
    """Read ``{"directed": ..., "nodes": [{"id": ...}], "edges": [{"source": ..., "target": ...}]}``.

    Older versions of networkx call the edges ``links``. Numbers are in SI units, text may have a unit of its own.

    Raises
    ------
    Fault
        With the line of the JSON where it breaks, or the number of the edge.
    """
    try:
        data = json.loads(source.text)
    except json.JSONDecodeError as error:
        raise source.fault(f"this is not JSON: {error.msg}", line=error.lineno, column=error.colno) from None
    except (RecursionError, ValueError):
        raise source.fault("this JSON is nested too deeply, or has a number of too many digits") from None
    if isinstance(data, dict) and "units-count" in data:
        raise source.fault(
            "this is a network of ASTRA-sim's first version: write npus_count, bandwidth … as YAML, as its version 2 reads them"
        )
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        raise source.fault('expected {"nodes": [...], "edges": [...]}, as networkx.node_link_data writes it')
    key = "edges" if "edges" in data else "links"
    if not isinstance(data.get(key), list):
        raise source.fault('there is no list "edges" (or "links")')
    vertices = [Found(ends=(_name(source, item, "id", f"nodes[{place}]"),), data=item) for place, item in enumerate(data["nodes"])]
    links = [
        Found(ends=(_name(source, item, "source", f"{key}[{place}]"), _name(source, item, "target", f"{key}[{place}]")), data=item)
        for place, item in enumerate(data[key])
    ]
    return wiring_from(source, vertices, links, directed=data.get("directed") is True)


def _name(source: Source, item: Any, key: str, where: str) -> str:
    """Return the name of a vertex; numbers are names too."""
    name = item.get(key) if isinstance(item, dict) else None
    if isinstance(name, bool) or not isinstance(name, (str, int)) or not str(name).strip() or not str(name).isprintable():
        raise source.fault(f"{where} has no {key!r} that names a vertex")
    return str(name)
