"""The hottest rank's expert compute before and after experts are replicated and placed anew."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.base.errors import CalibrationError
from moesim.facts.arrays import Floats, Ints
from moesim.models.fitted.expert_ffn import DRAWN, START, TILINGS, ExpertFfn
from moesim.models.fitted.rows import Rows, count, labels, numbers, words
from moesim.study.validation.ffn_inputs import Local, ffn_inputs
from moesim.study.validation.fitted_table import FittedTable
from moesim.study.validation.hot_rank_draws import REPLICATED, drawn_after, drawn_before, like_recorded
from moesim.study.validation.moe_ffn_table import MOST_DECODE_TOKENS, kernel_of, mean_roofline
from moesim.study.validation.table_kind import register_table


@register_table
class HotRankTable(FittedTable):
    """One call of the expert kernels on the hottest rank, for a power law as drawn, or balanced by EPLB on the true loads."""

    model = ExpertFfn
    name = "moe_hot_rank"
    files = ("moe_hot_rank_eplb*.csv",)
    columns = (
        "system", "moe_dtype", "moe_kernel", "hidden_size", "inter_size", "topk", "num_experts", "num_slots", "moe_ep_size", "distribution",
        "num_tokens", "rank0_num_tokens", "time_us",
    )  # fmt: skip
    source = "moe_hot_rank_eplb.csv"

    def inputs(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the loads of the hottest rank and the data sheet."""
        names, tokens = words(rows, "distribution").tolist(), _whole(rows, "num_tokens")
        shape = tuple(_whole(rows, name) for name in ("num_experts", "topk", "num_slots", "moe_ep_size"))
        seen = numbers(rows, "rank0_num_tokens").tolist()
        odd = next((index for index, number in enumerate(seen) if not 1 <= number <= tokens[index]), None)
        if odd is not None:
            raise CalibrationError(
                f"rank0_num_tokens {seen[odd]:g} of num_tokens {tokens[odd]}: the hottest rank is reached by one token at least, and by no "
                "more than there are"
            )
        wanted: dict[tuple[Any, ...], set[int]] = {}
        keys = [(name, *(column[row] for column in shape)) for row, name in enumerate(names)]
        for key, size in zip(keys, tokens, strict=True):
            if key[0].endswith(REPLICATED):
                wanted.setdefault(key, set()).add(size)
        planned = {key: drawn_after(*key, tuple(sorted(sizes))) for key, sizes in wanted.items()}

        def local(_: Rows, row: int) -> Local:
            name, experts, top_k, slots, ranks = keys[row]
            if name.endswith(REPLICATED):
                drawn = planned[keys[row]][tokens[row]]
            elif slots != experts:
                raise CalibrationError(
                    f"{slots} slots for {experts} experts without {REPLICATED}: nobody knows which experts are replicated"
                )
            else:
                drawn = drawn_before(name, experts, top_k, ranks, tokens[row])
            own = like_recorded(drawn, tokens[row], seen[row])
            return own, np.zeros((len(own), 1), dtype=np.int64)

        slots_per_rank = numbers(rows, "num_slots") / numbers(rows, "moe_ep_size")
        kernel = str(self.sections(rows)[0]).partition(".")[2] if count(rows) else "cutlass"
        return ffn_inputs(rows, kernel, local, slots_per_rank, self.regime(rows), received=numbers(rows, "rank0_num_tokens"))

    def sections(self, rows: Rows) -> NDArray[np.str_]:
        """Return the kernel library."""
        known = [name if name in TILINGS else kernel_of(name) for name in words(rows, "moe_kernel").tolist()]
        return np.asarray([f"expert_ffn.{name}" for name in known], dtype=np.str_)

    def instead(self, name: str) -> tuple[str, ...]:  # noqa: ARG002 - the contract's name
        """Return the library that the table has."""
        return ("expert_ffn.cutlass",)

    def seconds(self, rows: Rows) -> Floats:
        """Return the measured time."""
        return numbers(rows, "time_us") / 1e6

    def regime(self, rows: Rows) -> NDArray[np.str_]:
        """Return ``decode`` or ``prefill``, before or after replication."""
        size = np.where(numbers(rows, "num_tokens") <= MOST_DECODE_TOKENS, "decode", "prefill")
        after = np.char.endswith(words(rows, "distribution"), REPLICATED)
        return np.asarray([f"{phase}_{'after' if done else 'before'}" for phase, done in zip(size, after, strict=True)], dtype=np.str_)

    def group(self, rows: Rows) -> NDArray[np.str_]:
        """Return system and shape."""
        return labels(rows, ("system", "hidden_size", "inter_size", "num_experts"))

    def rivals(self, rows: Rows) -> NDArray[np.str_]:
        """Return the batch: placements of it compete."""
        return labels({**rows, "law": np.char.replace(words(rows, "distribution"), REPLICATED, "")}, (*_BATCH, "law"))

    def reference(self, rows: Rows) -> Ints:
        """Return the row of the same batch before replication; -1 for those themselves."""
        batches, after = self.rivals(rows).tolist(), np.char.endswith(words(rows, "distribution"), REPLICATED).tolist()
        before = {label: row for row, label in enumerate(batches) if not after[row]}
        return np.asarray([before.get(label, -1) if after[row] else -1 for row, label in enumerate(batches)], dtype=np.int64)

    def chance(self, rows: Rows) -> Floats:
        """Return the relative standard deviation of the times of the routings that a row may have been measured with.

        The two times of a pair are of two routings, each drawn once and recorded by one number alone. What their draws differ by is taken
        from the model with its starting values, which no row of the table has touched.
        """
        drawn = self.inputs(rows)
        times = []
        for draw in range(drawn["active"].shape[1]):
            one = {name: column[:, draw : draw + 1] if name in DRAWN else column for name, column in drawn.items()}
            times.append(np.log(ExpertFfn.seconds_of(START, one)))
        return np.asarray(np.std(times, axis=0, ddof=1) if len(times) > 1 else np.zeros(count(rows)))

    def baseline(self, rows: Rows) -> tuple[str, Floats]:
        """Return the roofline at the peaks for a rank with the mean load."""
        slots = numbers(rows, "num_slots") / numbers(rows, "moe_ep_size")
        return "roofline of a rank with the mean load, at the data sheet's peaks", mean_roofline(rows, slots)


_BATCH = ("system", "moe_dtype", "moe_kernel", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size", "num_tokens")


def _whole(rows: Rows, name: str) -> list[int]:
    return [int(value) for value in numbers(rows, name)]
