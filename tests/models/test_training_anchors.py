"""What is published about routers in training, in quality: with the settings stated here, the dynamics do what the papers show."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.base.loads import maxvio
from moesim.base.registry import plugin
from moesim.models.bare_setting import bare_setting
from moesim.models.source.training import Training


def no_file(path):
    raise AssertionError(path)


def loads(source, steps, *, experts, top_k, tokens, gpus=1, seed=3):
    """Routes to each expert of the only layer, int[steps, E], of every step up to the last one of ``steps``."""
    where = bare_setting(gpus=gpus, experts=experts, top_k=top_k, layers=1, tokens_per_gpu=tokens, seed=seed, read_trace=no_file)
    draw = source.begin(where)
    return np.stack([draw(step).layers[0].counts.sum(axis=0) for step in steps])


def bias(rate):
    return plugin("gate", "loss_free")(rate=rate)


def test_loss_free_balancing_is_much_more_even_than_a_weak_auxiliary_loss():
    # Wang et al., arXiv:2408.15664, Table 2: 64 experts, top-6, coefficient 0.001 against rate 0.001: MaxVio over many batches 0.72, 0.04.
    # Something must pull experts apart for good: a drive, which the loss holds where E drive = (x - 1) gain coefficient, and a bias
    # cancels. With gain 250 and 2.3 deviations for the hottest of 64, a drive of 1.2e-3 would give 0.72; domains move as well (x 1.25),
    # and the hottest of these 64 is no typical one, so it is 1.8e-3 here.
    law = {"experts_start": 0.15, "domain_start": 0.0, "feedback": 0.0, "domain_feedback": 0.0, "drift": 0.0, "decay": 0.0}
    plain = Training(**law, drive=1.8e-3, gain=250.0)
    played = {"nothing": plain, "loss": replace(plain, auxiliary=((0, 1e-3),)), "bias": replace(plain, gate=bias(1e-3))}
    steps = range(240, 280)  # 40 steps of 1,024 tokens: chance alone gives 0.04
    found = {name: float(maxvio(loads(source, steps, experts=64, top_k=6, tokens=1024).sum(axis=0))) for name, source in played.items()}
    assert 0.5 < found["loss"] < 1.0
    assert found["bias"] < 0.15
    assert found["nothing"] > 2 * found["loss"]


def test_a_small_bias_rate_is_slow_and_a_large_one_swings():
    # The same paper, figure 4: 1e-4 takes long, 1e-3 settles, 1e-2 is quick; and tests/golden (lossfree_bias_dynamics): 0.1 swings.
    law = {"experts_start": 0.5, "domain_start": 0.0, "feedback": 0.0, "domain_feedback": 0.0, "drift": 0.0, "decay": 0.0}
    course = {
        rate: loads(Training(**law, gate=bias(rate)), range(160), experts=16, top_k=2, tokens=2048) for rate in (1e-4, 1e-3, 1e-2, 0.1)
    }
    worst = {rate: maxvio(counts) for rate, counts in course.items()}
    assert worst[1e-4][150:].mean() > 0.8 * worst[1e-4][0]
    assert worst[1e-2][30:60].mean() < 0.7 * worst[1e-3][30:60].mean()  # quicker
    assert worst[1e-3][150:].mean() < 0.8 * worst[1e-4][150:].mean()
    assert worst[0.1][100:].mean() > 2 * worst[1e-2][100:].mean()  # swings
    now, then = course[0.1][101:] - 256.0, course[0.1][100:-1] - 256.0
    assert (now * then).sum() < -0.3 * (then**2).sum()  # above the mean in one step, below it in the next


def test_without_balancing_one_expert_is_alive_and_later_a_second():
    # OLMoE, arXiv:2409.02060, figure 10: eight experts, no balance loss; one takes nearly all tokens, later a second one; six are dead.
    # Feedback that fades makes one win; two domains that drift apart give it a rival, whom feedback within the domain then keeps. Top-1,
    # and alive means 10 % of the tokens. (With other seeds the second is there earlier.)
    source = Training(
        scale=0.15, growth=0.005, experts_start=0.15, domain_start=0.0, feedback=0.015, domain_feedback=0.02, fading=30.0, drift=0.0,
        domain_drift=0.05, decay=2e-4, domains=2, mixture=(2.0, 1.0), stickiness=1.0, sequence_length=64,
    )  # fmt: skip
    shares = loads(source, (500, 1500), experts=8, top_k=1, tokens=512) / 512
    assert (shares > 0.1).sum(axis=1).tolist() == [1, 2]
    assert (shares[1] < 0.02).sum() == 6


@pytest.mark.parametrize(("coefficient", "fewer"), [(0.1, True), (1e-4, False)])
def test_with_enough_auxiliary_loss_less_than_one_per_cent_is_dropped(coefficient, fewer):
    # Switch Transformer, arXiv:2101.03961, section 2.2: top-1, factor 1.25; less than 1 % dropped if the coefficient is sufficient.
    # Sufficient is gain coefficient / E > feedback: here 10 / 16 * 0.1 = 0.06 against 0.002, and 6e-5.
    rule = plugin("capacity", "switch")(factor=1.25)
    source = Training(capacity=rule, auxiliary=((0, coefficient),), gain=10.0, domain_feedback=0.0, domain_start=0.0)
    where = bare_setting(gpus=2, experts=16, top_k=1, layers=1, tokens_per_gpu=1024, seed=3, read_trace=no_file)
    draw, limit = source.begin(where), rule.begin(where)
    dropped = np.mean([limit(draw(step).layers[0], step=step, moe_layer=0).dropped.sum() / 2048 for step in (290, 295, 300)])
    assert (dropped < 0.01) == fewer
