"""Which kind of text, and which words, the tokens of a trace are, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.desk.trace_place import Where, first

MOST_DOMAINS = 10_000
"""More kinds of text than any corpus names; statistics ask for as many rows."""


def domain_of_tokens(arrays: dict[str, NDArray[Any]], tokens: int, where: Where) -> NDArray[Any] | None:
    """Return int[N], the domain of each token, if the file has it.

    Raises
    ------
    TraceError
        If it is no list of whole numbers, or has another length than the tokens.
    """
    if "domain" not in arrays:
        return None
    values = where.whole("domain", arrays["domain"], dimensions=1, shape="tokens")
    if values.shape != (tokens,):
        raise where.error("domain", f"has {len(values)} entries, but ids has {tokens} tokens")
    if int(values.max()) >= MOST_DOMAINS:
        token = first(values >= MOST_DOMAINS)[0]
        raise where.error("domain", f"token {token}: {int(values[token])} is too large to be the number of a domain")
    return values


def words_of_tokens(arrays: dict[str, NDArray[Any]], tokens: int, where: Where) -> NDArray[Any] | None:
    """Return int[N], which word of the vocabulary each token is, if the file has it.

    Raises
    ------
    TraceError
        If it is no list of whole numbers of at least 0, or has another length than the tokens.
    """
    if "words" not in arrays:
        return None
    values = where.whole("words", arrays["words"], dimensions=1, shape="tokens")
    if values.shape != (tokens,):
        raise where.error("words", f"has {len(values)} entries, but ids has {tokens} tokens")
    return values


def domain_counts(arrays: dict[str, NDArray[Any]], counts: NDArray[Any], where: Where) -> NDArray[np.int64] | None:
    """Return int[steps, L, D, E], routes from the tokens of each domain, if the file has them; -1 in steps in which they were not noted.

    Parameters
    ----------
    arrays : dict
        Of the file.
    counts : int[steps, L, E]
        Of all tokens.
    where : Where
        The file.

    Raises
    ------
    TraceError
        If the shape is not that of the counts, or domains do not add up to them.
    """
    steps, layers, experts = counts.shape
    name = "domain_counts" if "domain_counts" in arrays else "domain_routes"
    if name not in arrays:
        return None
    found = where.whole(name, arrays[name], dimensions=4, shape="steps, layers, domains, experts", minimum=-1)
    if (found.shape[1], found.shape[3]) != (layers, experts) or not 1 <= found.shape[2] <= MOST_DOMAINS:
        raise where.error(name, f"has shape {found.shape}, expected (steps, {layers}, domains, {experts}) to go with counts")
    if name == "domain_counts":
        full = found.astype(np.int64)
        if len(full) != steps:
            raise where.error(name, f"has {len(full)} steps, but counts has {steps}")
    else:
        full = np.full((steps, *found.shape[1:]), -1, dtype=np.int64)
        at = {}
        for array, length in (("looked_at", len(found)), ("recorded_at", steps)):
            if array not in arrays:
                raise where.error(array, f"missing; it names the steps of {'domain_routes' if array == 'looked_at' else 'counts'}")
            at[array] = where.whole(array, arrays[array], dimensions=1, shape="steps")
            if len(at[array]) != length:
                raise where.error(array, f"has {len(at[array])} entries, but there are {length} steps")
        _, here, there = np.intersect1d(at["recorded_at"], at["looked_at"], return_indices=True)
        full[here] = found[there]
    known: NDArray[np.bool_] = np.asarray((full >= 0).all(axis=(1, 2, 3)))
    wrong = np.asarray((full.sum(axis=2) != counts) & known[:, None, None])
    if wrong.any():
        step, layer, expert = first(wrong)
        raise where.error(
            name,
            f"step {step}, layer {layer}, expert {expert}: domains add up to {int(full[step, layer, :, expert].sum())} routes, but counts "
            f"has {int(counts[step, layer, expert])}",
        )
    full[~known] = -1
    return full
