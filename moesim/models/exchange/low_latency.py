"""A copy for every expert, straight to its GPU: the low-latency kernels of DeepEP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from moesim.base.fields import ReadFile
from moesim.base.registry import register
from moesim.facts.model import Dtype
from moesim.facts.profile_data import ProfileField
from moesim.facts.routing import Assignment
from moesim.facts.scenario import Setting
from moesim.models.exchange.copies import copies_per_route, padding_rows
from moesim.models.exchange.fitted_limits import low_latency_limits
from moesim.models.exchange.transport import Carrier, Rows, Transport, there_and_back

HEADER_BYTES = 16


@register("exchange", "low_latency")
@dataclass(frozen=True, slots=True, kw_only=True)
class LowLatency(Transport):
    """Send a copy of a token for each of its experts straight to that expert's GPU, without de-duplication.

    A dispatched copy is ``dispatch_width`` elements with their scales behind a header of 16 bytes; a returned one is the elements alone,
    for gate weights stay with the token, where the results are added up. So 7168 elements weigh 7408 bytes in fp8 on the way out and
    14336 in bf16 on the way back. Two experts of one GPU get two copies. Whether a copy to the same node goes over NVLink or the network
    is the cluster's route, which is NVLink where there is one.

    Backward is the reverse in bf16, without headers. DeepEP has no backward of these kernels; this is what it would send.
    Its bandwidth is DeepEP's: all choices of a GPU's tokens, those that stay on the GPU included, times the bytes of a message, over time.

    Parameters
    ----------
    dispatch_dtype : str
        ``fp8`` is what DeepEP's kernels make of the tokens unless told otherwise.
    profile : str or None
        A shipped profile's name, or the file of one: its sections of these kernels then say how long they take before the first byte, in
        place of
        ``launch``, and what a GPU sends at most. The cluster's efficiencies still apply: with ``nvlink_efficiency: 1`` the profile alone
        decides.
    fitted : profile or None
        What the profile holds; the loader fills it in.

    Notes
    -----
    Source: deepseek-ai/DeepEP, ``csrc/kernels/internode_ll.cu`` (``num_bytes_per_msg``) and ``test_low_latency.py``.
    """

    dispatch_dtype: Dtype = "fp8"
    profile: Annotated[str, ReadFile(reader="profile/deepep_low_latency", into="fitted")] | None = None
    fitted: ProfileField | None = None

    def begin(self, setting: Setting) -> Carrier:
        """Return the exchange of one run."""
        price = self.price(setting.model.dispatch_width)
        message = price.dispatch + HEADER_BYTES
        price = replace(price, dispatch=message, counted_dispatch=message)
        each = {"dispatch": price.dispatch, "combine": price.combine}
        limits = None if self.fitted is None else low_latency_limits(self.fitted, setting, each)
        port, held = self.port(setting), self.held_sms(setting)
        count = partial(_count, ranks=setting.parallel.ep)
        return Carrier(plan=self, price=price, port=port, held_sms=held, count=count, limits=limits)


def _count(assignment: Assignment, *, ranks: int) -> Rows:
    stage = (copies_per_route(assignment, ranks), padding_rows(assignment, ranks))
    return there_and_back((stage,), assignment.slot_counts.sum(axis=1))
