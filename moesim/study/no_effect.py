"""Why an input changes nothing, where that follows from the scenario."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.facts.scenario import Scenario
from moesim.models.exchange.payload import SCALED
from moesim.study.sensitivity import Input


def reason(given: Input, scenario: Scenario, metrics: Mapping[str, float]) -> str:
    """Return why an input changes no metric; empty where nothing here says so.

    Parameters
    ----------
    given : Input
    scenario : Scenario
        At its base.
    metrics : mapping of str to float
        Of the base.
    """
    if given.low == given.high:
        return "as a whole number its range is one number" if given.whole else "its range is one number"
    rules = (_of_exchange, _of_links, _of_policy)
    return next((found for rule in rules if (found := rule(given.key, scenario, metrics))), "")


def _of_exchange(key: str, scenario: Scenario, _: Mapping[str, float]) -> str:
    exchange = scenario.exchange
    if key == "exchange.bandwidth_per_sm" and getattr(exchange, "communication_sms", None) is None:
        return "exchange.communication_sms is null, so the SMs limit nothing"
    if key == "exchange.scale_block":
        narrow = {getattr(exchange, "dispatch_dtype", ""), getattr(exchange, "combine_dtype", "")} & set(SCALED)
        return "" if narrow else f"nothing is sent in a dtype with scales ({', '.join(SCALED)})"
    if key.startswith("sharing."):
        return f"sharing.mode is {scenario.sharing.mode!r}, which does not use it, or the traffic never called for it"
    return ""


def _of_links(key: str, scenario: Scenario, metrics: Mapping[str, float]) -> str:
    if not key.startswith(("exchange.", "cluster.")):
        return ""
    if scenario.parallel.ep == 1:
        return "every GPU has all experts (parallel.ep is 1), so no token travels"
    between = key.rsplit(".", 1)[-1].startswith(("nic", "oversubscription", "switch"))
    return "nothing crosses nodes" if between and metrics.get("cross_node_bytes") == 0.0 else ""


def _of_policy(key: str, scenario: Scenario, metrics: Mapping[str, float]) -> str:
    if key.startswith("policy.rebalance.") and not metrics.get("migrated_bytes", 0.0) > 0.0:
        return f"the placement {scenario.policy.placement.kind!r} moved nothing"
    if key == "policy.capacity.factor" and metrics.get("drop_rate") == 0.0 and metrics.get("padding_waste", 0.0) == 0.0:
        return "in the whole range nothing is dropped and nothing padded"
    return ""
