"""Remove a testbed whose owner is gone, however it went: even a process that is killed leaves no namespaces behind.

The janitor is a shell that waits for a word of its owner. The word comes when the owner has cleaned up itself. If the owner ends without
it, the pipe between them ends, and the janitor removes what is there. It is a session of its own, so that what ends the owner's terminal
or is sent to the owner's group does not reach it.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

WORD = "done"
PATIENCE = 5.0
"""Seconds that an owner waits for its janitor to leave."""

SCRIPT = f"""trap '' HUP INT
word=
read -r word
[ "$word" = {WORD} ] && exit 0
lock=$1
shift
sleep 0.3  # a tool that the owner had just started may still be making one
for name in "$@"; do ip netns delete "$name" 2>/dev/null; done
rm -f "$lock"
"""


class Janitor:
    """A process that outlives its owner by as long as it takes to remove some namespaces.

    Parameters
    ----------
    namespaces : sequence of str
        What to remove.
    lock : Path
        The file of the testbed's lock, removed as well.
    """

    def __init__(self, namespaces: Sequence[str], lock: Path) -> None:
        # Nothing else may hold the other end of this pipe, or the owner's death would go unnoticed: Python's files are closed in children.
        self._process = subprocess.Popen(  # noqa: S603 - our own words
            ["sh", "-c", SCRIPT, "sh", str(lock), *namespaces],  # noqa: S607 - where sh is differs
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def dismiss(self) -> None:
        """Say that there is nothing left to remove."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # somebody has ended it
            self._process.communicate(f"{WORD}\n".encode(), timeout=PATIENCE)
