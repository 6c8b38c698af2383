"""Which layers have experts: the nine ways in which configurations say it."""

from __future__ import annotations

from collections.abc import Callable

from moesim.desk.config_aliases import FIRST_DENSE, Family
from moesim.desk.config_fields import Fields, brief

BLOCKS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
RULES = (
    "moe_layers",
    "mlp_layer_types",
    "moe_layers_enum",
    "moe_layer_freq",
    "first_k_dense_replace",
    "decoder_sparse_step",
    "mlp_only_layers",
    "interleave_moe_layer_step",
    "expert_layer_period",
    "moe_layer_start_index",
    "hybrid_override_pattern",
    "layers_block_type",
)
"""The fields that can say which layers have experts, for the message when an unknown model has none."""


def blocks_of(fields: Fields) -> list[str] | None:
    """Return the kind of each block of a model that stacks single blocks (Nemotron-H), or None for ordinary layers.

    Returns
    -------
    list of str or None
        ``mamba``, ``moe``, ``attention`` or ``mlp`` for each block.
    """
    pattern = fields.value("hybrid_override_pattern")
    if pattern is not None:
        if not isinstance(pattern, str) or not pattern or set(pattern) - set(BLOCKS):
            fields.complain("hybrid_override_pattern", f"{brief(pattern)} is not a text of the letters {', '.join(BLOCKS)}")
            return None
        return [BLOCKS[letter] for letter in pattern]
    listed = fields.items("layers_block_type")
    if listed is None or "moe" not in listed:
        return None
    return fields.choices("layers_block_type", len(listed), tuple(BLOCKS.values()))


def moe_layers_of(fields: Fields, layers: int, family: Family | None, blocks: list[str] | None) -> tuple[int, ...]:
    """Return the layers that have experts, counted from 0.

    Every rule that the file states is followed, and all must agree. A known family without any means all layers (or every second,
    for Jamba); an unknown one must say.

    Parameters
    ----------
    fields : Fields
        The configuration.
    layers : int
        How many layers there are.
    family : Family or None
        What the model type implies; None if it is unknown.
    blocks : list of str or None
        From :func:`blocks_of`.
    """
    found: dict[str, tuple[int, ...]] = {}
    before = len(fields.problems)
    if blocks is not None:
        found["hybrid_override_pattern"] = tuple(i for i, kind in enumerate(blocks) if kind == "moe")
    for rule, read in _RULES.items():
        chosen = read(fields, layers)
        if chosen is not None:
            found[rule] = tuple(chosen)
    if len(fields.problems) > before:
        return ()
    if not found:
        if family is None:
            fields.complain("which layers have experts", f"missing; looked for {', '.join(RULES)}")
            return ()
        return tuple(range(family.step - 1, layers, family.step))
    (first, answer), *others = found.items()
    if not fields.sound:
        return answer
    for rule, other in others:
        if other != answer:
            fields.complain(
                rule, f"says that {len(other)} layers have experts, but by {first} it is {len(answer)}: they must be the same layers"
            )
    if not answer:
        fields.complain(first, "no layer has experts: moesim needs at least one MoE layer")
    return answer


def _listed(fields: Fields, layers: int) -> list[int] | None:
    # Only Llama-4 has both; with both, the list is what counts and the step is what it was made from.
    found = fields.numbers("moe_layers", minimum=0, maximum=layers - 1)
    return sorted(set(found)) if found is not None else None


def _typed(fields: Fields, layers: int) -> list[int] | None:
    found = fields.choices("mlp_layer_types", layers, ("dense", "sparse"))
    return [i for i, kind in enumerate(found) if kind == "sparse"] if found is not None else None


def _enumerated(fields: Fields, layers: int) -> list[int] | None:
    # Step-3 writes the numbers into one text: "3,4,5".
    value = fields.value("moe_layers_enum")
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) < layers for part in parts):
            # With a wrong number of layers, everything would seem out of range.
            if not fields.sound:
                return None
            fields.complain("moe_layers_enum", f"{brief(value)} is not a list of layers (0 to {layers - 1}) with commas")
            return None
        return sorted({int(part) for part in parts})
    found = fields.numbers("moe_layers_enum", minimum=0, maximum=layers - 1)
    return sorted(set(found)) if found is not None else None


def _from_first_dense(fields: Fields, layers: int) -> list[int] | None:
    # DeepSeek: a layer has experts from first_k_dense_replace on, if moe_layer_freq divides its number.
    if isinstance(fields.value("moe_layer_freq"), list):
        found = fields.choices("moe_layer_freq", layers, (0, 1))
        return [i for i, flag in enumerate(found) if flag] if found is not None else None
    if not fields.has("moe_layer_freq", *FIRST_DENSE):
        return None
    first = fields.whole("number of dense layers", FIRST_DENSE, minimum=0, default=0)
    every = fields.whole("distance of MoE layers", ("moe_layer_freq",), default=1)
    return [i for i in range(layers) if i >= first and i % every == 0]


def _sparse_step(fields: Fields, layers: int) -> list[int] | None:
    # Qwen-MoE: layer i has experts if decoder_sparse_step divides i + 1 and i is not in mlp_only_layers.
    if not fields.has("decoder_sparse_step", "mlp_only_layers"):
        return None
    step = fields.whole("distance of MoE layers", ("decoder_sparse_step",), default=1)
    dense = fields.numbers("mlp_only_layers", minimum=0, maximum=layers - 1) or []
    return [i for i in range(layers) if (i + 1) % step == 0 and i not in dense]


def _interleaved(fields: Fields, layers: int) -> list[int] | None:
    # Llama-4: the last of every interleave_moe_layer_step layers has experts, unless moe_layers lists them.
    if not fields.has("interleave_moe_layer_step") or fields.has("moe_layers"):
        return None
    step = fields.whole("distance of MoE layers", ("interleave_moe_layer_step",))
    return list(range(step - 1, layers, step))


def _periodic(fields: Fields, layers: int) -> list[int] | None:
    # Jamba: layer i has experts if i is expert_layer_offset modulo expert_layer_period.
    if not fields.has("expert_layer_period"):
        return None
    period = fields.whole("period of MoE layers", ("expert_layer_period",))
    offset = fields.whole("offset of MoE layers", ("expert_layer_offset",), minimum=0, default=0)
    return [i for i in range(layers) if i % period == offset]


def _from_start_to_end(fields: Fields, layers: int) -> list[int] | None:
    # ERNIE 4.5: start and end are included, -1 is the last layer, and the interval counts from layer 1.
    names = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
    if not fields.has(*names):
        return None
    start = fields.whole("first MoE layer", names[:1], minimum=0, default=0)
    end = fields.whole("last MoE layer", names[1:2], minimum=-1, default=-1)
    interval = fields.whole("distance of MoE layers", names[2:], default=1)
    last = layers - 1 if end == -1 else end
    return [i for i in range(layers) if start <= i <= last and (i + 1) % interval == 0]


_RULES: dict[str, Callable[[Fields, int], list[int] | None]] = {
    "moe_layers": _listed,
    "mlp_layer_types": _typed,
    "moe_layers_enum": _enumerated,
    "moe_layer_freq": _from_first_dense,
    "decoder_sparse_step": _sparse_step,
    "interleave_moe_layer_step": _interleaved,
    "expert_layer_period": _periodic,
    "moe_layer_start_index": _from_start_to_end,
}
