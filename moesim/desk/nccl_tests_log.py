"""Logs of nccl-tests: what ``alltoall_perf`` prints, as rows of the table of all-to-alls."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from moesim.base.errors import CalibrationError
from moesim.desk.measured_tables import MeasuredTable, Refused

RANK = re.compile(r"#\s+Rank\s+(?P<rank>\d+)\b.*?\bon\s+(?P<host>\S+)\s+device\s+\d+\s+\[[^\]]*\]\s+(?P<device>.*\S)")
VERSION = re.compile(r"nccl-library=(?P<code>\d+)|NCCL version (?P<text>\d+(?:\.\d+)+)", re.IGNORECASE)
TEST = re.compile(
    r"\b(?P<test>all_?to_?all|all_?reduce|all_?gather|reduce_?scatter|broadcast|sendrecv|gather|scatter|reduce)(?:_perf)?\b", re.IGNORECASE
)
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
ROW = re.compile(r"\s*(?P<size>\d+)\s+(?P<count>\d+)\s+(?P<type>\w+)\s+(?P<redop>\w+)\s+(?P<root>-?\d+)\s+(?P<rest>.*\S)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    ranks: int
    hosts: int
    device: str
    version: str
    test: str


def is_log(text: str) -> bool:
    """Tell whether a text is what a program of nccl-tests printed."""
    return "algbw" in text and "busbw" in text and re.search(r"^#.*\bsize\b.*\btime\b", text, re.MULTILINE) is not None


def read_log(text: str, name: str, *, gpu: str = "") -> MeasuredTable:
    """Read the log of one all-to-all test.

    Out-of-place times are taken, in-place ones ignored. Lines without a time (a test that was cut off) are told.

    Parameters
    ----------
    text : str
        Of the log.
    name : str
        Its file, for the name of the table and for messages.
    gpu : str
        The GPU, where the log does not name it or is to be overruled.

    Returns
    -------
    MeasuredTable
        With the columns of ``nccl_alltoall_intranode.csv``.

    Raises
    ------
    CalibrationError
        If the log is of another operation, spans several hosts, or does not say how many ranks there were.

    Notes
    -----
    Source of the format: NVIDIA/nccl-tests, ``src/common.cu`` and ``src/alltoall.cu`` (``print_header``).
    """
    header = _header(text, name)
    if "all" not in header.test or "to" not in header.test:
        raise CalibrationError(
            f"a log of {header.test or 'an unnamed test'}: only all-to-alls are fitted; if it is one, put 'alltoall' into the file's name"
        )
    if header.hosts > 1:
        raise CalibrationError(
            f"the ranks ran on {header.hosts} hosts: the model of this table is for one node; measure alltoall_perf in one"
        )
    if header.ranks < 2:
        raise CalibrationError(
            "the log does not list its ranks ('#  Rank  0 ... device ...'): run nccl-tests without cutting its header off"
        )
    system = gpu or header.device
    if not system:
        raise CalibrationError("the log does not name the GPU: say which with --gpu")
    return _table(text, header, system, name)


def _table(text: str, header: _Header, system: str, name: str) -> MeasuredTable:
    sizes, times, lines, refused = [], [], [], []
    for number, line in enumerate(text.splitlines(), start=1):
        found = None if line.lstrip().startswith("#") else ROW.fullmatch(line)
        if found is None:
            continue
        first = found["rest"].split()[0]
        if re.fullmatch(NUMBER, first) is None or float(first) <= 0:
            refused.append(Refused(rows=1, line=number, reason=f"the time {first!r} is not a number above 0"))
        elif int(found["size"]) > 0:
            sizes.append(int(found["size"]))
            times.append(float(first))
            lines.append(number)
    if not sizes:
        raise CalibrationError("the log holds no line with a size and a time")
    rows = {
        "system": np.asarray([system] * len(sizes)),
        "nccl": np.asarray([header.version] * len(sizes)),
        "num_gpus": np.full(len(sizes), header.ranks, dtype=np.int64),
        "bytes_per_rank": np.asarray(sizes, dtype=np.int64),
        "time_us": np.asarray(times, dtype=np.float64),
    }
    # The name makes it the kind of table that it is, whatever the log is called.
    folder, _, last = name.rpartition("/")
    shown = f"{folder}/" * bool(folder) + f"nccl_alltoall_intranode.{last}.csv"
    return MeasuredTable(name=shown, rows=rows, lines=np.asarray(lines, dtype=np.int64), refused=tuple(refused))


def _header(text: str, name: str) -> _Header:
    ranks = [found for line in text.splitlines() if (found := RANK.match(line))]
    version = VERSION.search(text)
    named = TEST.search("\n".join(line for line in text.splitlines() if "_perf" in line.lower() or "collective test" in line.lower()))
    test = named or TEST.search(_as_words(name.rpartition("/")[2]))
    return _Header(
        ranks=len({found["rank"] for found in ranks}),
        hosts=len({found["host"] for found in ranks}),
        device=ranks[0]["device"] if ranks else "",
        version="" if version is None else version["text"] or _dotted(int(version["code"])),
        test="" if test is None else re.sub(r"[^a-z]", "", test["test"].lower()),
    )


def _as_words(name: str) -> str:
    """Return the name of a file with blanks between its words, and every way to write all-to-all as one word.

    Examples
    --------
    >>> _as_words("h100-all_to_all_perf_8.log"), _as_words("a2a_2.log")
    ('h100 alltoall perf 8 log', 'alltoall 2 log')
    """
    joined = re.sub(r"(?<![A-Za-z0-9])(?:all[-_ ]?to[-_ ]?all|a2a)(?![A-Za-z])", "alltoall ", name, flags=re.IGNORECASE)
    joined = re.sub(r"(?<![A-Za-z0-9])(all|reduce)[-_](reduce|gather|scatter)", r"\1\2", joined, flags=re.IGNORECASE)
    return " ".join(re.split(r"[^A-Za-z0-9]+", joined)).strip()


def _dotted(code: int) -> str:
    """Return NCCL's version code as text.

    Examples
    --------
    >>> _dotted(22304)
    '2.23.4'
    """
    return f"{code // 10000}.{code % 10000 // 100}.{code % 100}" if code >= 10000 else f"{code // 1000}.{code % 1000 // 100}.{code % 100}"
