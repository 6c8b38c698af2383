"""In which number formats a model's weights are held, from ``torch_dtype`` and ``quantization_config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.desk.config_fields import Fields, brief
from moesim.facts.model import DTYPE_BYTES

NAMES = {name: name for name in DTYPE_BYTES} | {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "float8_e4m3fn": "fp8",
    "auto": "bf16",
}
METHODS = ("fp8", "fbgemm_fp8", "mxfp4", "modelopt", "compressed-tensors", "awq", "gptq", "bitsandbytes")
ALGORITHMS = {"FP8": "fp8", "NVFP4": "fp4", "MXFP4": "mxfp4"}


def dtypes_of(fields: Fields) -> tuple[str, str, str, list[str]]:
    """Return the formats of weights, experts and activations, and notes.

    Activations are in the model's own format; without any, bf16. A method that quantises everything changes weights and experts;
    MXFP4 and NVFP4 checkpoints quantise the experts and keep (most of) the rest. ``expert_dtype`` has the last word on experts.

    Parameters
    ----------
    fields : Fields
        The configuration; problems go there.

    Returns
    -------
    tuple
        Three keys of ``DTYPE_BYTES`` and a list of sentences.
    """
    base = _named(fields, "dtype", _named(fields, "torch_dtype", "bf16"))
    weights, experts, notes = base, base, []
    section = fields.value("quantization_config")
    if section is None:
        section = fields.outer.get("quantization_config")
    if section is not None and not isinstance(section, dict):
        fields.complain("quantization_config", f"{brief(section)} is not a mapping")
    elif section is not None:
        experts = _quantised(fields, section, stated=fields.has("expert_dtype")) or base
        if experts in {"fp8", "int8"}:
            weights = experts
        elif experts == "fp4":
            notes.append(f"only the experts are counted as {experts}; all other weights as {base}")
    return weights, _named(fields, "expert_dtype", experts), base, notes


def _named(fields: Fields, name: str, default: str) -> str:
    value = fields.value(name)
    if value is None:
        value = fields.outer.get(name)
    if value is None:
        return default
    word = value.removeprefix("torch.") if isinstance(value, str) else ""
    if word not in NAMES:
        fields.complain(name, f"unknown number format {brief(value)} (known: {', '.join(sorted(NAMES))})")
        return default
    return NAMES[word]


def _quantised(fields: Fields, section: Mapping[str, Any], *, stated: bool) -> str | None:
    method = section.get("quant_method")
    path = "quantization_config.quant_method"
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if method == "modelopt":
        algorithm = section.get("quant_algo")
        if isinstance(algorithm, str) and algorithm in ALGORITHMS:
            return ALGORITHMS[algorithm]
        path, method = "quantization_config.quant_algo", algorithm
    elif isinstance(method, str) and method in METHODS:
        bits, kind = _bits(section)
        known = {(8, "float"): "fp8", (4, "float"): "fp4", (8, "int"): "int8"}
        if (bits, kind) in known:
            return known[bits, kind]
        if not stated:
            message = f"{brief(method)} with {brief(bits)}-bit weights of type {brief(kind)} is not among the formats moesim knows"
            fields.complain(path, f"{message}; add expert_dtype (known: {', '.join(DTYPE_BYTES)}) to say what experts count as")
        return None
    if not stated:
        fields.complain(path, f"unknown quantisation {brief(method)}; add expert_dtype (known: {', '.join(DTYPE_BYTES)})")
    return None


def _bits(section: Mapping[str, Any]) -> tuple[Any, Any]:
    groups = section.get("config_groups")
    if not isinstance(groups, dict):
        bits = section.get("bits", 8 if section.get("load_in_8bit") is True else 4)
        return (bits if isinstance(bits, int) else None), "int"
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            bits, kind = weights.get("num_bits"), weights.get("type")
            return (bits if isinstance(bits, int) else None), (kind if isinstance(kind, str) else None)
    return None, None
