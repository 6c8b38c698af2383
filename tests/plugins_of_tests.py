"""Plug-ins that tests make up, and the claim that a check finds what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from moesim.base.errors import ContractBroken
from moesim.base.registry import plugin


@dataclass(frozen=True)
class Own:
    """A plug-in of a test: ``start(setting)`` gives its run."""

    start: Callable[[Any], Any]

    def begin(self, setting: Any) -> Any:
        return self.start(setting)


def broken(rule: str, check: Callable[..., None], plugin: Any, **keywords: Any) -> str:
    with pytest.raises(ContractBroken) as caught:
        check(plugin, **keywords)
    assert caught.value.rule == rule, str(caught.value)
    return str(caught.value)


def changed(slot: str, kind: str, change: Callable[..., Any], **fields: Any) -> Own:
    """The plug-in of a kind, with every answer of its runs passed through ``change``."""
    honest = plugin(slot, kind)(**fields)

    def start(setting: Any) -> Any:
        run = honest.begin(setting)
        return lambda *args, **keys: change(run(*args, **keys))

    return Own(start)
