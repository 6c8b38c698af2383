"""Real text of several kinds that every installation of Python brings along, and batches drawn from it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import UsageError
from moesim.base.streams import stream

LARGEST = 1_000_000
"""Bytes of a domain at most."""
MODULES = (
    "_pydecimal", "argparse", "ast", "calendar", "configparser", "dataclasses", "datetime", "difflib", "doctest", "ftplib", "gettext",
    "imaplib", "inspect", "ipaddress", "mailbox", "optparse", "pathlib", "pdb", "pickle", "pydoc", "random", "shutil", "smtplib",
    "statistics", "subprocess", "tarfile", "textwrap", "threading", "traceback", "turtle", "typing", "zipfile",
)  # fmt: skip
"""Of the standard library; those that an installation lacks are left out."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One kind of text: its bytes as uint8[N]."""

    name: str
    content: NDArray[np.uint8]

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, hexadecimal: installations differ, and so do trainings then."""
        return hashlib.sha256(self.content.tobytes()).hexdigest()


def standard_domains() -> tuple[Domain, ...]:
    """Return English prose, Python source, tables of character sets, and names of characters.

    Raises
    ------
    UsageError
        If this installation of Python lacks one of them.
    """
    makers = {"prose": _prose, "code": _code, "tables": _tables, "names": _names}
    return tuple(_domain(name, make()) for name, make in makers.items())


def domains_of_files(files: Mapping[str, str | Path]) -> tuple[Domain, ...]:
    """Return a domain for each name, made of one file, or of all files of a folder in the order of their names.

    Raises
    ------
    UsageError
        If a path cannot be read or holds too little.
    """
    found = []
    for name, place in files.items():
        path = Path(place)
        try:
            parts = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
            found.append(_domain(name, b"".join(part.read_bytes() for part in parts)))
        except OSError as error:
            raise UsageError(f"the text {name!r}: {path}: {(error.strerror or str(error)).lower()}") from None
    return tuple(found)


def _domain(name: str, content: bytes) -> Domain:
    if len(content) < 10_000:
        raise UsageError(
            f"the text {name!r} has {len(content)} bytes, and a model learns nothing from less than 10,000; give more with --text"
        )
    return Domain(name, np.frombuffer(content[:LARGEST], dtype=np.uint8))


def _prose() -> bytes:
    found = importlib.util.find_spec("pydoc_data")
    if found is None:
        raise UsageError("this installation of Python lacks its help texts (pydoc_data); give texts of your own with --text NAME=PATH")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def _library() -> Path:
    return Path(importlib.util.__file__).resolve().parents[1]


def _code() -> bytes:
    return b"".join(file.read_bytes() for name in MODULES if (file := _library() / f"{name}.py").is_file())


def _tables() -> bytes:
    return b"".join(file.read_bytes() for file in sorted((_library() / "encodings").glob("cp*.py")))


def _names() -> bytes:
    named = ((point, unicodedata.name(chr(point), "")) for point in range(0x20, min(0x20000, sys.maxunicode)))
    return "".join(f"{point:04X} {name}\n" for point, name in named if name).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Sequences of text for every step.

    Parameters
    ----------
    domains : sequence of Domain
        Each sequence is a piece of one of them.
    seed : int
    sequences : int
        B, of a step.
    length : int
        n, tokens of a sequence.
    """

    domains: Sequence[Domain]
    seed: int
    sequences: int
    length: int

    def at(self, step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return uint8[B, n + 1], the bytes of each sequence and the one after, and int[B], the domain of each; all are equally likely."""
        rng = stream(self.seed, "training", "batch", step)
        domain = rng.integers(len(self.domains), size=self.sequences)
        place = rng.random(self.sequences)
        rows = []
        for which, where in zip(domain.tolist(), place.tolist(), strict=True):
            content = self.domains[which].content
            start = int(where * (len(content) - self.length))
            rows.append(content[start : start + self.length + 1])
        return np.stack(rows), domain
