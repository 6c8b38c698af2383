"""What is published about routers in training, and what the source ``training`` gives with settings that are stated here.

The constants were chosen for these facts, not fitted to the models of the papers, whose recordings are not public: where a number of one
line set a constant, the line says so, and the lines beside it are what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesim.base.errors import CalibrationError
from moesim.base.loads import maxvio
from moesim.base.registry import plugin
from moesim.facts.arrays import Ints
from moesim.facts.trace import Trace
from moesim.models.bare_setting import bare_setting
from moesim.models.source.training import Training

SEED = 3
LOSS_FREE = "arXiv:2408.15664"
OLMOE = "arXiv:2409.02060"
SWITCH = "arXiv:2101.03961"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One published fact beside what was simulated.

    Parameters
    ----------
    fact : str
        In words.
    source : str
        Where it is published.
    published, found : str
        The numbers.
    low, high : float
        Between which ``value`` must lie for the fact to hold.
    value : float
        What was simulated.
    chosen : bool
        Whether a constant was set so that it does: then it is no evidence.
    """

    fact: str
    source: str
    published: str
    found: str
    low: float
    high: float
    value: float
    chosen: bool = False

    @property
    def holds(self) -> bool:
        """Whether the simulation does what was published."""
        return self.low <= self.value <= self.high


def loads(source: Training, steps: Iterable[int], *, experts: int, top_k: int, tokens: int, gpus: int = 1) -> Ints:
    """Return int[steps, E], routes to each expert of a single layer in some training steps."""
    where = bare_setting(gpus=gpus, experts=experts, top_k=top_k, layers=1, tokens_per_gpu=tokens, seed=SEED, read_trace=_no_trace)
    draw = source.begin(where)
    return np.stack([draw(step).layers[0].counts.sum(axis=0) for step in steps])


def _no_trace(path: str) -> Trace:
    raise CalibrationError(f"a router that trains reads no trace ({path})")


def _bias(rate: float) -> Any:
    return plugin("gate", "loss_free")(rate=rate)


def loss_free() -> list[Anchor]:
    """Play 64 experts, top-6, under an auxiliary loss of 0.001 and under a bias of rate 0.001.

    Notes
    -----
    Something must pull experts apart for good: a drive, which the loss holds where E drive = (x - 1) gain coefficient, and which a bias
    cancels. With gain 250 and the hottest of 64 at 2.3 deviations, a drive of 1.2e-3 gives 0.72; domains move as well (1.25 times), and the
    hottest of these 64 is no typical one, so it is 1.8e-3. MaxVio is that of 40 steps of 1,024 tokens together; chance alone gives 0.04.
    """
    plain = Training(
        experts_start=0.15, domain_start=0.0, feedback=0.0, domain_feedback=0.0, drift=0.0, decay=0.0, drive=1.8e-3, gain=250.0
    )
    played = {"nothing": plain, "loss": replace(plain, auxiliary=((0, 1e-3),)), "bias": replace(plain, gate=_bias(1e-3))}
    steps = range(240, 280)
    found = {name: float(maxvio(loads(source, steps, experts=64, top_k=6, tokens=1024).sum(axis=0))) for name, source in played.items()}
    table = f"{LOSS_FREE}, table 2"
    return [
        Anchor(fact="MaxVio under a balance loss of 0.001", source=table, published="0.72 (1B), 0.52 (3B)", found=f"{found['loss']:.2f}",
               low=0.5, high=1.0, value=found["loss"], chosen=True),
        Anchor(fact="MaxVio under a loss-free bias of rate 0.001", source=table, published="0.04", found=f"{found['bias']:.2f}",
               low=0.0, high=0.15, value=found["bias"]),
        Anchor(fact="MaxVio without either, over that with the loss", source=table, published="more", low=2.0, high=np.inf,
               found=f"{found['nothing'] / found['loss']:.1f}x", value=found["nothing"] / found["loss"]),
    ]  # fmt: skip


def rates() -> list[Anchor]:
    """Play 16 experts, top-2, that begin far apart, under biases of four rates."""
    still = Training(experts_start=0.5, domain_start=0.0, feedback=0.0, domain_feedback=0.0, drift=0.0, decay=0.0)
    course = {
        rate: loads(replace(still, gate=_bias(rate)), range(160), experts=16, top_k=2, tokens=2048) for rate in (1e-4, 1e-3, 1e-2, 0.1)
    }
    worst = {rate: maxvio(counts) for rate, counts in course.items()}
    now, then = course[0.1][101:] - 256.0, course[0.1][100:-1] - 256.0
    swing = float((now * then).sum() / (then**2).sum())
    slow, quick = float(worst[1e-4][150:].mean() / worst[1e-4][0]), float(worst[1e-2][30:60].mean() / worst[1e-3][30:60].mean())
    settled, swings = float(worst[1e-3][150:].mean() / worst[1e-4][150:].mean()), float(worst[0.1][100:].mean() / worst[1e-2][100:].mean())
    figure = f"{LOSS_FREE}, figure 4"
    return [
        Anchor(fact="rate 0.0001 settles slowly: MaxVio after 150 steps, over its start", source=figure, published="high", low=0.8,
               high=1.0, found=f"{slow:.2f}x", value=slow),
        Anchor(fact="rate 0.01 is quicker than 0.001: MaxVio of steps 30 to 60", source=figure, published="lower", low=0.0, high=0.7,
               found=f"{quick:.2f}x", value=quick),
        Anchor(fact="rate 0.001 settles before 0.0001: MaxVio after 150 steps", source=figure, published="lower", low=0.0, high=0.8,
               found=f"{settled:.2f}x", value=settled),
        Anchor(fact="a rate too large swings (0.1 here, 0.01 in the paper): MaxVio over that of 0.01",
               source=figure, published="higher", low=2.0, high=np.inf, found=f"{swings:.1f}x", value=swings),
        Anchor(fact="and what is above the mean in one step is below it in the next: correlation of loads", source=figure,
               published="negative", low=-np.inf, high=-0.3, found=f"{swing:.2f}", value=swing),
    ]  # fmt: skip


def collapse() -> list[Anchor]:
    """Play eight experts, top-1, two kinds of text, without balancing.

    Notes
    -----
    Feedback that fades makes one expert win; two domains that drift apart give it a rival, whom feedback within the domain then keeps.
    Alive is an expert with 10 % of the tokens. With other seeds the second may be there earlier.
    """
    source = Training(
        scale=0.15, growth=0.005, experts_start=0.15, domain_start=0.0, feedback=0.015, domain_feedback=0.02, fading=30.0, drift=0.0,
        domain_drift=0.05, decay=2e-4, domains=2, mixture=(2.0, 1.0), stickiness=1.0, sequence_length=64,
    )  # fmt: skip
    shares = loads(source, (500, 1500), experts=8, top_k=1, tokens=512) / 512
    early, late = (shares > 0.1).sum(axis=1).tolist()
    dead = int((shares[1] < 0.02).sum())
    figure = f"{OLMOE}, figure 10"
    return [
        Anchor(fact="experts alive of eight, early", source=figure, published="1", found=str(early), low=1, high=1, value=early,
               chosen=True),
        Anchor(fact="experts alive of eight, late", source=figure, published="2", found=str(late), low=2, high=2, value=late,
               chosen=True),
        Anchor(fact="experts dead of eight, late", source=figure, published="6", found=str(dead), low=6, high=6, value=dead),
    ]  # fmt: skip


def drops() -> list[Anchor]:
    """Play 16 experts, top-1, capacity factor 1.25, under a strong and a weak balance loss.

    Notes
    -----
    The paper says less than 1 % if the coefficient is high enough. High enough is gain coefficient / E above the feedback: here 10 / 16 x
    0.1 = 0.06 against 0.002, and 6e-5.
    """
    rule = plugin("capacity", "switch")(factor=1.25)
    found = {}
    for coefficient in (0.1, 1e-4):
        source = Training(capacity=rule, auxiliary=((0, coefficient),), gain=10.0, domain_feedback=0.0, domain_start=0.0)
        where = bare_setting(gpus=2, experts=16, top_k=1, layers=1, tokens_per_gpu=1024, seed=SEED, read_trace=_no_trace)
        draw, limit = source.begin(where), rule.begin(where)
        shares = [limit(draw(step).layers[0], step=step, moe_layer=0).dropped.sum() / 2048 for step in (290, 295, 300)]
        found[coefficient] = 100 * float(np.mean(shares))
    section = f"{SWITCH}, section 2.2"
    return [
        Anchor(fact="dropped with enough balance loss, per cent", source=section, published="less than 1", found=f"{found[0.1]:.2f}",
               low=0.0, high=1.0, value=found[0.1], chosen=True),
        Anchor(fact="dropped with next to none, per cent", source=section, published="more than 1", found=f"{found[1e-4]:.1f}",
               low=1.0, high=100.0, value=found[1e-4]),
    ]  # fmt: skip


ALL: tuple[Callable[[], list[Anchor]], ...] = (loss_free, rates, collapse, drops)


def anchors() -> list[Anchor]:
    """Return all of them; takes some seconds."""
    return [anchor for play in ALL for anchor in play()]
