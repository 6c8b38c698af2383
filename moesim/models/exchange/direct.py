"""Every GPU sends to every other at once, in one stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from moesim.base.fields import Flag, ReadFile
from moesim.base.registry import register
from moesim.facts.profile_data import ProfileField
from moesim.facts.routing import Assignment
from moesim.facts.scenario import Setting
from moesim.models.exchange.copies import copies_per_route, copies_per_token, padding_rows, without_own
from moesim.models.exchange.fitted_limits import all_to_all_limits, slowing
from moesim.models.exchange.transport import Carrier, Rows, Transport, there_and_back


@register("exchange", "direct")
@dataclass(frozen=True, slots=True, kw_only=True)
class Direct(Transport):
    """Send each token straight to the GPUs of its experts, and the results straight back.

    Forward dispatch: one copy of a token per destination GPU (``deduplicate``, as DeepEP does inside a node) or one per route (as an
    all-to-all of permuted tokens does). A copy is ``dispatch_width`` elements and its routing: for each choice a 4-byte expert index and a
    4-byte gate weight, k of each with a de-duplicated copy, one of each with a route. Forward combine: the GPU of the experts adds up what
    it holds of a token and returns one copy, or returns one per route. Padding rows are sent one by one in both cases, at the price of a
    copy.

    Backward is the reverse: the gradient of combine goes from the tokens to the experts, the gradient of dispatch back, with a 4-byte
    gradient per gate weight; both in bf16, and the routing is remembered. What stays on its own GPU is never sent.

    Its bandwidth is, with ``deduplicate``, DeepEP's NVLink bandwidth (tokens that a GPU receives, its own included, over time), and
    otherwise the algorithm bandwidth of nccl-tests (the whole send buffer of a GPU, its own share included, over time).

    Parameters
    ----------
    deduplicate : bool
        Needs to know the experts of each token.
    profile : str or None
        A shipped profile's name, or the file of one: its sections of an all-to-all (``own_all_to_all`` of the machine itself, as
        'moesim measure exchange' times it; otherwise ``nccl_all_to_all``) then say how long they take before the first byte, in place of
        ``launch``, and what a GPU sends at most. The cluster's efficiencies still apply: with ``nvlink_efficiency: 1`` the profile alone
        decides. A section ``overlap`` ('moesim measure overlap') says how much experts are slowed beside an exchange, where
        ``communication_sms`` is left out.
    fitted : profile or None
        What the profile holds; the loader fills it in.
    """

    deduplicate: Flag = True
    profile: Annotated[str, ReadFile(reader="profile/nccl_|own_all_to_all|overlap", into="fitted")] | None = None
    fitted: ProfileField | None = None

    def begin(self, setting: Setting) -> Carrier:
        """Return the exchange of one run."""
        model = setting.model
        price = self.price(model.dispatch_width, choices=model.top_k if self.deduplicate else 1)
        if not self.deduplicate:
            price = replace(price, counted_dispatch=price.dispatch, counted_gradient=price.gradient_out)
        limits = None if self.fitted is None else all_to_all_limits(self.fitted, setting)
        port, held = self.port(setting), slowing(self.fitted, self.held_sms(setting))
        count = partial(self._count, ranks=setting.parallel.ep)
        return Carrier(plan=self, price=price, port=port, held_sms=held, count=count, limits=limits)

    def _count(self, assignment: Assignment, *, ranks: int) -> Rows:
        padding = padding_rows(assignment, ranks)
        if not self.deduplicate:
            sent = (assignment.slot_counts + assignment.slot_padding).sum(axis=1)
            return there_and_back(((copies_per_route(assignment, ranks), padding),), sent)
        copies = copies_per_token(assignment, "exchange.deduplicate", ranks=ranks, own=True)
        received = copies.sum(axis=1).ravel()
        return there_and_back(((without_own(copies), padding),), received)
