# SPDX-License-Identifier: Apache-2.0
"""Keys of the params file: their defaults, what they accept, and what they must not contradict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poptransformer.attention_rules import LINFORMER_STYLES
from poptransformer.data.word_pieces import WordPieces
from poptransformer.errors import ConfigError, did_you_mean
from poptransformer.rules import (
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_FRACTION,
    TEXT,
    Rule,
    integer,
    is_integer,
    is_list,
    one_of,
    or_null,
)

DYNAMIC = "BertMlmOnlyTfRecordsDynamicMaskProcessor"
STATIC = "BertMlmOnlyTfRecordsStaticMaskProcessor"
PADS = ("input_pad_id", "segment_pad_id", "mlm_pad_id")
REQUIRED = object()

_RISING = Rule(
    "a list of rising lengths", lambda x: is_list(x, is_integer) and list(x) == sorted({*x}) and x[:1] != [0], "[32,64]"
)
_ANY_INTEGER = Rule("an integer", is_integer, "-1")
_INITIALIZER = Rule("a name, or a mapping with one", lambda x: isinstance(x, (str, Mapping)), "xavier_uniform")
_DROPOUT = Rule("a number of at least 0 and below 1", lambda x: NOT_NEGATIVE.accepts(x) and x < 1, "0.1")

# Keys of `train_input` and `eval_input`, which takes from `train_input` what it leaves out.
INPUT: dict[str, tuple[Any, Rule]] = {
    "data_processor": (DYNAMIC, one_of(DYNAMIC, STATIC)),
    "data_dir": (REQUIRED, TEXT),
    "vocab_file": (None, or_null(TEXT)),
    "vocab_size": (None, or_null(integer(5))),
    "do_lower": (False, FLAG),
    "max_sequence_length": (512, integer(4)),
    "max_predictions_per_seq": (80, integer(1)),
    "masked_lm_prob": (0.15, POSITIVE_FRACTION),
    "mask_whole_word": (False, FLAG),
    "scale_mlm_weights": (True, FLAG),
    "batch_size": (32, integer(1)),
    "shuffle": (True, FLAG),
    "shuffle_buffer": (None, or_null(integer(1))),
    "buckets": (None, or_null(_RISING)),
}
MODEL: dict[str, tuple[Any, Rule]] = {
    "attention_style": ("linformer-shared-heads", one_of(*LINFORMER_STYLES)),
    "projected_dims": (REQUIRED, integer(1)),
    "use_vsl": (False, FLAG),
    "hidden_size": (REQUIRED, integer(1)),
    "num_hidden_layers": (REQUIRED, integer(1)),
    "num_heads": (REQUIRED, integer(1)),
    "filter_size": (REQUIRED, integer(1)),
    "use_position_embedding": (True, FLAG),
    "position_embedding_type": ("learned", one_of("learned", "fixed")),
    "max_position_embeddings": (None, or_null(integer(4))),
    "use_segment_embedding": (False, FLAG),
    "share_embedding_weights": (True, FLAG),
    "attention_type": ("scaled_dot_product", one_of("scaled_dot_product", "dot_product")),
    "use_projection_bias_in_attention": (False, FLAG),
    "use_ffn_bias_in_attention": (False, FLAG),
    "use_ffn_bias": (False, FLAG),
    "use_pre_normalization": (False, FLAG),
    "layer_norm_epsilon": (1e-8, POSITIVE),
    "encoder_nonlinearity": ("gelu", TEXT),
    "dropout_rate": (0.0, _DROPOUT),
    "attention_dropout_rate": (0.0, _DROPOUT),
    "initializer": ({"name": "truncated_normal", "mean": 0.0, "std": 0.02}, _INITIALIZER),
    "projection_initializer": ("xavier_uniform", _INITIALIZER),  # or `pooling`
    "use_ffn_bias_in_mlm": (False, FLAG),
    "use_output_bias_in_mlm": (False, FLAG),
    "mlm_nonlinearity": ("gelu", TEXT),
    "mlm_loss_scaling": (
        "precomputed_num_masked",
        one_of("precomputed_num_masked", "num_masked", "batch_size"),
    ),
    "mlm_loss_weight": (1.0, POSITIVE),
    "disable_nsp": (True, Rule("true, as there is no next sentence to predict here", lambda x: x is True, "true")),
    "mixed_precision": (False, FLAG),
    "vocab_size": (None, or_null(integer(5))),  # set by `train_input`
}


def get_params(params_file: str | Path, mode: str | None = None) -> dict[str, Any]:
    """Reads a params file of this example, and completes it."""
    from poptransformer.training import get_params as read

    return read(params_file, mode, set_defaults)


def set_defaults(params: dict[str, Any]) -> None:
    """Completes and checks the params in place.

    Raises:
        ConfigError: a key is unknown or missing, or its value is not accepted or contradicts another one.
    """
    train, evaluation, model = params["train_input"], params["eval_input"], params["model"]
    _complete("train_input", train, INPUT, more=PADS)
    inherited = {key: (False if key == "shuffle" else train[key], rule) for key, (_, rule) in INPUT.items()}
    _complete("eval_input", evaluation, inherited)
    _complete("model", model, MODEL, more=PADS)
    for name, section in (("train_input", train), ("eval_input", evaluation)):
        _absolute_paths(section)
        section["vocab_size"] = _vocab_size(name, section)
    _sizes(train, evaluation, model)
    _pads(train, model)


def _complete(
    name: str, section: dict[str, Any], table: Mapping[str, tuple[Any, Rule]], more: tuple[str, ...] = ()
) -> None:
    for key in list(section):
        if key not in table and key not in more:
            raise ConfigError(f"Unknown key {name}.{key}. {did_you_mean(key, [*table, *more])}")
    for key, (default, rule) in table.items():
        value = section.setdefault(key, None if default is REQUIRED else default)
        rule.check(f"{name}.{key}", value)


def _absolute_paths(section: dict[str, Any]) -> None:
    for key in ("data_dir", "vocab_file"):
        if section[key] is not None:
            section[key] = str(Path(section[key]).expanduser().absolute())


def _vocab_size(name: str, section: dict[str, Any]) -> int:
    """The size that is given, or that of the vocabulary; the data loader compares them."""
    if section["vocab_size"] is not None:
        return section["vocab_size"]
    if section["vocab_file"] is None:
        raise ConfigError(f"Set {name}.vocab_file or {name}.vocab_size; the model needs to know its word pieces.")
    return len(WordPieces(section["vocab_file"], section["do_lower"]).pieces)


def _sizes(train: dict[str, Any], evaluation: dict[str, Any], model: dict[str, Any]) -> None:
    """What inputs and model must agree about."""
    if model["max_position_embeddings"] is None:
        model["max_position_embeddings"] = train["max_sequence_length"]
    longest = model["max_position_embeddings"]
    if model["vocab_size"] is None:
        model["vocab_size"] = train["vocab_size"]
    for name, section in (("train_input", train), ("eval_input", evaluation)):
        if section["max_sequence_length"] > longest:
            raise ConfigError(
                f"{name}.max_sequence_length is {section['max_sequence_length']}, but model.max_position_embeddings "
                f"{longest}. Raise the second or lower the first."
            )
        if section["vocab_size"] != model["vocab_size"]:
            raise ConfigError(
                f"{name} has a vocabulary of {section['vocab_size']}, the model one of {model['vocab_size']}. "
                "Give all of them the same."
            )
        if section["data_processor"] == DYNAMIC and section["vocab_file"] is None:
            raise ConfigError(f"{name}.vocab_file is missing: {DYNAMIC} needs the word pieces.")


def _pads(train: dict[str, Any], model: dict[str, Any]) -> None:
    """The numbers that stand for padding in batches of variable length (VSL), `train_input` to `model`."""
    if not model["use_vsl"]:
        for section in (train, model):
            for key in PADS:
                if key in section:
                    raise ConfigError(f"{key} tells padding apart for model.use_vsl: true; set that or remove it.")
        return
    size = model["vocab_size"]
    for key, default in zip(PADS, (size + 1, 2, -1), strict=True):
        value = train.setdefault(key, default)
        _ANY_INTEGER.check(f"train_input.{key}", value)
        if model.setdefault(key, value) != value:
            raise ConfigError(f"model.{key} is {model[key]}, but train_input.{key} {value}. Remove the first.")
    if 0 < train["input_pad_id"] < size or train["input_pad_id"] == -1:
        raise ConfigError(
            f"train_input.input_pad_id must be 0 or no id of the vocabulary ({size} or more, -2 or less), found "
            f"{train['input_pad_id']}. Leave it out for {size + 1}."
        )
    if -1 <= train["segment_pad_id"] <= 1:
        raise ConfigError(
            f"train_input.segment_pad_id must be below -1 or above 1, found {train['segment_pad_id']}. "
            "Leave it out for 2."
        )
    if train["mlm_pad_id"] != -1:
        raise ConfigError(f"train_input.mlm_pad_id must be -1, found {train['mlm_pad_id']}. Leave it out.")
