"""Capacity rules that say of moved or sent routes what is not so: each is caught by the rule it breaks."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from moesim.base.errors import ContractBroken
from moesim.base.registry import plugin
from moesim.testing import check_capacity


@dataclass(frozen=True)
class Changed:
    """A good rule whose answer is changed."""

    kind: str
    how: str

    def begin(self, setting):
        good = plugin("capacity", self.kind)().begin(setting)

        def limit(routing, *, step, moe_layer):
            kept = good(routing, step=step, moe_layer=moe_layer)
            if self.how == "invented" and kept.moved is not None:
                moved = np.array(kept.moved)
                moved[0, 0] += 1
                return replace(kept, moved=moved)
            if self.how == "hidden" and kept.moved is not None:
                return replace(kept, moved=None)
            if self.how == "misshapen" and kept.moved is not None:
                return replace(kept, moved=kept.moved[:-1])
            if self.how == "unsent" and kept.sent is not None:
                empty = replace(kept.routing, counts=np.zeros_like(routing.counts), ids=None, weights=None, scores=None)
                return replace(kept, sent=replace(kept.sent, routing=empty, dropped=routing.counts))
            if self.how == "lost" and kept.sent is not None:
                return replace(kept, sent=replace(kept.sent, dropped=kept.sent.dropped + 1))
            return kept

        return limit


@pytest.mark.parametrize(
    ("kind", "how", "rule", "words"),
    [
        ("next_best", "invented", "law L1", "lost or invented between experts"),
        ("next_best", "hidden", "law L1", "routes from GPU"),
        ("next_best", "misshapen", "shape", "moved has shape"),
        ("megablocks", "unsent", "fidelity", "what it sends: forgot the choices"),
        ("megablocks", "lost", "law L1", "what it sends: "),
    ],
)
def test_capacity_rule_that_is_wrong_about_what_travels(kind, how, rule, words):
    with pytest.raises(ContractBroken, match=words) as caught:
        check_capacity(Changed(kind, how))
    assert caught.value.rule == rule
