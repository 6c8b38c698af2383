"""Read a model from the ``config.json`` that its checkpoint is published with.

::

    read_config("config.json") -> MoeModel      model_of({...}) -> MoeModel

Every quantity has many names (:mod:`moesim.desk.config_aliases`). Nothing is guessed: a known ``model_type`` may imply what its files
leave unsaid; of an unknown one every field must be there, and what is missing is listed with the names that were tried.
Multi-token-prediction layers are not part of the facts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.base.errors import FieldError, Problem, ScenarioError, did_you_mean
from moesim.desk import config_aliases as names
from moesim.desk.config_aliases import FAMILIES, Family
from moesim.desk.config_attention import attention_of
from moesim.desk.config_dtypes import dtypes_of
from moesim.desk.config_fields import ABSENT, Fields, brief
from moesim.desk.config_layers import blocks_of, moe_layers_of
from moesim.facts.model import DTYPE_BYTES, MoeModel

NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where multimodal files keep the language model."""

MOST_LAYERS = 10_000
SCORING = ("softmax", "sigmoid", "sqrtsoftplus")


def read_config(path: str | Path) -> MoeModel:
    """Read a ``config.json``, or the one in a folder.

    Parameters
    ----------
    path : path
        A file, or a folder that holds ``config.json``.

    Returns
    -------
    MoeModel
        Named after the file, or after its folder if the file is called ``config.json``.

    Raises
    ------
    ScenarioError
        If the file cannot be read, is not JSON, or does not describe a model with experts; with every problem found.
    """
    file = Path(path)
    try:
        if file.is_dir():
            file = file / "config.json"
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(str(file), f"not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refusal(str(file), f"cannot read this file: {reason}") from error
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        problem = Problem(file=str(file), line=error.lineno, column=error.colno, message=f"not JSON: {error.msg}")
        raise ScenarioError([problem]) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else "a number in it is too long"
        raise _refusal(str(file), f"not a model configuration: {what}") from error
    return model_of(config, file.resolve().parent.name if file.name == "config.json" else file.stem, file=str(file))


def model_of(config: Any, name: str = "", *, file: str = "") -> MoeModel:
    """Return the model that a decoded ``config.json`` describes.

    Parameters
    ----------
    config : mapping
        The JSON object.
    name : str
        What to call the model; its ``model_type`` by default.
    file : str
        Its file, for messages.

    Raises
    ------
    ScenarioError
        With every problem found: fields that are missing (and the names tried), contradictory, or of the wrong type.
    """
    if not isinstance(config, Mapping):
        raise _refusal(file, f"a model configuration is a JSON object, not {brief(config)}")
    part = _language_model(config)
    fields = Fields(part, config, file)
    kind = part.get("model_type") if part.get("model_type") is not None else config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    _refuse_what_facts_cannot_hold(fields, kind)
    facts = _facts(fields, family)
    if family is None and not fields.sound:
        hint = did_you_mean(kind[:80], FAMILIES) if isinstance(kind, str) else ""
        fields.complain("model_type", f"{brief(kind)} is not a model that moesim knows, so nothing is taken as implied{hint}")
    fields.stop()
    try:
        return MoeModel(name=name or (kind if isinstance(kind, str) and kind.strip() else "model"), **facts)
    except FieldError as error:
        raise ScenarioError([Problem(file=file, path=error.field, message=error.message)]) from error


def _refusal(file: str, message: str) -> ScenarioError:
    return ScenarioError([Problem(file=file, message=message)])


def _language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    part = config
    while True:
        inner = next((part[key] for key in NESTED if isinstance(part.get(key), Mapping)), None)
        if inner is None:
            return part
        part = inner


def _refuse_what_facts_cannot_hold(fields: Fields, kind: Any) -> None:
    zero = fields.value("zero_expert_num")
    if zero not in (None, 0):
        fields.complain(
            "zero_expert_num", f"{brief(zero)} experts that compute nothing: the work of a token varies, which moesim cannot express"
        )
    elif kind == "longcat_flash":
        fields.complain("model_type", "'longcat_flash' runs two attention and two dense blocks in a layer, which moesim cannot express")
    if fields.value("is_encoder_decoder") is True:
        fields.complain("is_encoder_decoder", "true: moesim models decoders only")
    if fields.value("enable_moe_block") is False:
        fields.complain("enable_moe_block", "false: this variant has no experts")


def _facts(fields: Fields, family: Family | None) -> dict[str, Any]:
    implied = family or Family()
    hidden = fields.whole("hidden size", names.HIDDEN)
    blocks = blocks_of(fields)
    count = fields.whole("number of layers", names.LAYERS, maximum=MOST_LAYERS, default=len(blocks) if blocks else ABSENT)
    if blocks is not None and len(blocks) != count and fields.sound:
        fields.complain("num_hidden_layers", f"{count}, but the pattern of blocks has {len(blocks)}")
    experts = fields.whole("number of routed experts", names.EXPERTS)
    top_k = fields.whole("experts per token", names.TOP_K)
    width = _expert_width(fields, family)
    shared_experts, shared_width = _shared(fields, implied, width)
    groups, top_groups = _groups(fields)
    moe_layers = moe_layers_of(fields, count, family, blocks) if count <= MOST_LAYERS else ()
    weights, expert_dtype, activations, notes = dtypes_of(fields)
    attention, more = attention_of(fields, hidden, count, blocks, DTYPE_BYTES[activations])
    hash_layers = fields.whole("layers that route by token", names.HASH_LAYERS, minimum=0, default=0)
    return {
        "layers": count,
        "moe_layers": moe_layers,
        "hidden": hidden,
        "experts": experts,
        "top_k": top_k,
        "expert_width": width,
        "shared_experts": shared_experts,
        "shared_width": shared_width,
        "dense_width": _dense_width(fields, implied, blocks, all_moe=len(moe_layers) == count),
        "groups": groups,
        "top_groups": top_groups,
        "scoring": fields.word("scoring function", names.SCORING, SCORING, default=family.scoring if family else ABSENT),
        "normalise_top_k": fields.flag("normalisation of the chosen weights", names.NORMALISE, default=implied.normalise),
        "routed_scale": fields.number("scale of the routed output", names.ROUTED_SCALE, default=1.0),
        "correction_bias": _bias(fields, implied),
        "hash_layers": hash_layers,
        "dispatch_width": fields.whole("width of what an expert is sent", names.DISPATCH_WIDTH, default=hidden),
        "weight_dtype": weights,
        "expert_dtype": expert_dtype,
        "activation_dtype": activations,
        "vocabulary": fields.whole("vocabulary", names.VOCABULARY, minimum=0, default=0),
        "gated": implied.gated,
        "tied_embeddings": _tied(fields),
        "notes": (*notes, *more),
        "attention": attention,
    }


def _expert_width(fields: Fields, family: Family | None) -> int:
    if family is None or not family.plain_width:
        return fields.whole("width of an expert", names.EXPERT_WIDTH)
    # Jamba and Hunyuan may also have the explicit name; then it is the one that counts.
    explicit = fields.has(*names.EXPERT_WIDTH)
    return fields.whole("width of an expert", names.EXPERT_WIDTH if explicit else names.PLAIN_WIDTH)


def _shared(fields: Fields, family: Family, width: int) -> tuple[int, int]:
    count = fields.whole("number of shared experts", names.SHARED_COUNT, minimum=0, default=-1)
    each = fields.whole("width of a shared expert", names.SHARED_WIDTH, minimum=0, default=-1)
    if family.dense_beside:
        return 1, fields.whole("width of the dense block", names.PLAIN_WIDTH)
    if count < 0:
        count = (1 if each > 0 else 0) if each >= 0 else family.shared
    if each < 0:
        each = width
    # A width of 0 means none, whatever the count says; and the other way round.
    return (count, count * each) if count and each else (0, 0)


def _groups(fields: Fields) -> tuple[int, int]:
    groups = fields.whole("expert groups", names.GROUPS, default=1)
    chosen = fields.whole("expert groups of a token", names.TOP_GROUPS, default=groups)
    # DeepSeek-V2 ignores the groups when it routes greedily.
    return (1, 1) if fields.value("topk_method") == "greedy" or groups == 1 else (groups, chosen)


def _bias(fields: Fields, family: Family) -> bool:
    method = fields.value("topk_method")
    default = method == "noaux_tc" if isinstance(method, str) else family.bias
    return fields.flag("correction bias", names.BIAS, default=default)


def _tied(fields: Fields) -> bool:
    if fields.has("tie_word_embeddings"):
        return fields.flag("tied embeddings", ("tie_word_embeddings",), default=False)
    return fields.outer.get("tie_word_embeddings") is True


def _dense_width(fields: Fields, family: Family, blocks: list[str] | None, *, all_moe: bool) -> int:
    if blocks is not None:
        if "mlp" in blocks:
            fields.complain(
                "hybrid_override_pattern", "dense blocks beside blocks without any: moesim needs one kind of layer without experts"
            )
        return 0
    if all_moe:
        return 0
    special = names.DENSE_WIDTH if fields.has(*names.DENSE_WIDTH) else names.PLAIN_WIDTH
    if family.plain_width and special == names.PLAIN_WIDTH:
        return fields.whole("width of a dense block", names.PLAIN_WIDTH)
    return fields.whole("width of a dense block", special) if fields.has(*special) or fields.sound else 0
