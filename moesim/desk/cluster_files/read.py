"""One door to every format: a file becomes a wiring, or a list of what is wrong with it, each with its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from moesim.base.errors import FieldError, MoesimError, Problem
from moesim.desk.cluster_files import astra_sim, graphml, nccl, node_link, nvidia_smi, own_yaml
from moesim.desk.cluster_files.faults import Fault, Source
from moesim.models.topology.wiring import Wiring

LONGEST = 16 * 1024 * 1024
"""Bytes of a description. A larger file is something else by mistake."""

READERS: dict[str, Callable[[Source], Wiring]] = {
    "yaml": own_yaml.read,
    "graphml": graphml.read,
    "node-link": node_link.read,
    "nvidia-smi": nvidia_smi.read,
    "nccl": nccl.read,
    "astra-sim": astra_sim.read,
}

ENDINGS = {".graphml": "graphml", ".json": "node-link", ".txt": "nvidia-smi", ".log": "nvidia-smi"}


def read_wiring(path: str, keys: dict[str, object]) -> tuple[Wiring | None, list[Problem]]:
    """Read the description of a machine.

    Parameters
    ----------
    path : str
        Absolute.
    keys : dict
        The other keys of the section that names the file; ``format`` says what the file is.

    Returns
    -------
    wiring : Wiring or None
        None where there are problems.
    problems : list of Problem
        Each with the file and, where one is to blame, its line.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(LONGEST + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return None, [Problem(file=path, message=f"cannot be read: {reason.lower()}")]
    if len(content) > LONGEST:
        return None, [Problem(file=path, message=f"is larger than {LONGEST // 1024 // 1024} MiB: this describes no cluster")]
    try:
        text = _decoded(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return None, [Problem(file=path, line=line, column=1, message=f"the byte 0x{content[error.start]:02x} is not UTF-8; is this text?")]
    source = Source(path=path, text=text)
    written = keys.get("format", "auto")
    kind = written if isinstance(written, str) and written in READERS else _guessed(source)
    if kind not in READERS:
        known = ", ".join(READERS)
        return None, [Problem(file=path, message=f"cannot tell what this file is; say 'format: ...' with one of {known}")]
    try:
        return READERS[kind](source), []
    except Fault as fault:
        return None, list(fault.problems)
    except (FieldError, MoesimError) as error:
        return None, [Problem(file=path, message=str(error))]


def _decoded(content: bytes) -> str:
    """Return the text; a shell on Windows writes redirected output as UTF-16 with a mark in front."""
    return content.decode("utf-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig")


def _guessed(source: Source) -> str:
    """Return the format that a file's ending names, or, of endings that several formats have, what its text looks like."""
    ending = Path(source.path).suffix.lower()
    if ending in ENDINGS:
        return ENDINGS[ending]
    head = source.text[:65536]
    if ending in {".yaml", ".yml"}:
        return "astra-sim" if re.search(r"^\s*npus_count\s*:", head, re.MULTILINE) else "yaml"
    if "<system" in head:
        return "nccl"
    if "<graphml" in head:
        return "graphml"
    if re.search(r"\bGPU0\b", head):
        return "nvidia-smi"
    return "nccl" if ending == ".xml" else ""
