# SPDX-License-Identifier: Apache-2.0
"""Which precision each weight gets: the recipe, and the details of quantization."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from poptransformer.errors import ConfigError, did_you_mean
from poptransformer.rules import FLAG, TEXT, Rule, choice, integer, one_of, or_null
from poptransformer.section import Section, check_keys, setting

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "fp8", "fp8_weight")
FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")
EVERYTHING = "*"
_KEY = "global_args.precision"
_WORDS = ("fp8_format", "fp8_convention", "fp8_scale", "fp8_activations", "scale_method", "calibration_method")
_FOR_ALL = ("calibration_file", "calibration_tokens")  # keys that a single rule cannot set
_EXAMPLE = '{"lm_head*":int8,"*":int4}'


@dataclasses.dataclass(frozen=True)
class QuantizationConfig(Section):
    """How weights are quantized, where `precision` asks for it.

    Attributes:
        int4_block: columns that share a scale: 32, 64 or 128.
        int4_symmetric: int4 with a scale for each block; false adds an offset, an eighth more bytes for less error.
        int8_block: columns that share a scale: 32, 64, 128, or `channel` for whole rows.
        fp8_format: `e4m3`, or `e5m2` with more range and less precision.
        fp8_convention: `onnx` (E4M3FN, E5M2) or `ipu`: Graphcore's F143 and F152 (FNUZ), scaled by powers of two.
        fp8_scale: one scale for each `channel` (row) or for the whole `tensor`.
        fp8_activations: scales of `fp8`'s activations: `dynamic`, from each token's values, or `static`, from
            what `calibration_file` shows.
        scale_method: `search` tries scales and takes the one with the smallest error, `minmax` the one that the
            largest value gives.
        calibration_method: `gptq` rounds int4 weights so that the outputs change least on `calibration_file`.
        calibration_file: a text file, read as UTF-8.
        calibration_tokens: how many of its tokens are used.
    """

    NAME: ClassVar[str] = "global_args.quantization"

    int4_block: int = setting(32, one_of(32, 64, 128))
    int4_symmetric: bool = setting(False, FLAG)
    int8_block: int | str = setting(32, one_of(32, 64, 128, "channel"))
    fp8_format: str = setting("e4m3", choice("e4m3", "e5m2"))
    fp8_convention: str = setting("onnx", choice("onnx", "ipu"))
    fp8_scale: str = setting("channel", choice("channel", "tensor"))
    fp8_activations: str = setting("dynamic", choice("dynamic", "static"))
    scale_method: str = setting("search", choice("search", "minmax"))
    calibration_method: str = setting("none", choice("none", "gptq"))
    calibration_file: str | None = setting(None, or_null(TEXT))
    calibration_tokens: int = setting(8192, integer(32))

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in _WORDS:  # capitals are accepted, and mean the same
            object.__setattr__(self, key, str(getattr(self, key)).lower())

    @property
    def float8(self) -> str:
        """The format of fp8 weights, by ONNX's name in lower case."""
        if self.fp8_convention == "ipu":
            return f"{self.fp8_format}fnuz"
        return "e4m3fn" if self.fp8_format == "e4m3" else "e5m2"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a rule of the recipe asks for.

    Attributes:
        precision: one of `PRECISIONS`.
        details: how weights of that precision are quantized.
    """

    precision: str
    details: QuantizationConfig = dataclasses.field(default_factory=QuantizationConfig)

    @property
    def is_float(self) -> bool:
        """Whether weights are stored in 16 or 32 bits."""
        return self.precision in FLOAT_PRECISIONS

    @property
    def rounds_by_outputs(self) -> bool:
        """Whether weights are rounded so that the outputs for the calibration text change least."""
        return self.precision == "int4" and self.details.calibration_method == "gptq"

    @property
    def has_static_scales(self) -> bool:
        """Whether activations have the scale that the calibration text shows."""
        return self.precision == "fp8" and self.details.fp8_activations == "static"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Patterns of weight names and what the weights get; the first pattern that matches counts.

    Attributes:
        rules: pattern and choice, in order. A weight that no pattern matches keeps the checkpoint's own type.
        text: the recipe as it was written: a precision's name, or JSON.
        details: what holds for all rules.
        head: what the weight that gives the logits gets, where a precision's name stands for the whole model. Its
            errors go straight into the output: SmolLM2's perplexity rises by 5% if it alone is rounded to int4, by
            1.8% if to E4M3, and by nothing that shows if to int8 (docs/quantization.md).
    """

    rules: tuple[tuple[str, Choice], ...]
    text: str
    details: QuantizationConfig
    head: Choice | None = None

    @classmethod
    def of(
        cls, precision: str | Mapping[str, Any], quantization: QuantizationConfig | Mapping[str, Any] | None = None
    ) -> Self:
        """Reads a configuration.

        Args:
            precision: a name of `PRECISIONS`, or patterns (as of file names: `*`, `?`, `[ab]`) -> such a name, or a
                mapping with a name as `precision` and the keys of `QuantizationConfig` that differ for these weights.
            quantization: keys of `QuantizationConfig`.

        Raises:
            ConfigError: a name, key or value is not accepted.
        """
        details = quantization
        if not isinstance(details, QuantizationConfig):
            details = QuantizationConfig.from_mapping(details or {})
        if isinstance(precision, str):
            whole = Choice(_checked(precision), details)
            return cls(((EVERYTHING, whole),), precision, details, _head_beside(whole))
        if not isinstance(precision, Mapping) or not precision:
            raise ConfigError(
                f"{_KEY} must be a precision or a recipe {{name pattern: precision}}, found {precision!r}. "
                f"For example: {_KEY}=int4 or '{_KEY}={_EXAMPLE}'"
            )
        asked = {str(pattern): wanted for pattern, wanted in precision.items()}
        rules = tuple((pattern, _choice(pattern, wanted, details)) for pattern, wanted in asked.items())
        return cls(rules, json.dumps(asked, default=dict), details)

    def match(self, names: Iterable[str]) -> tuple[str, Choice] | None:
        """Returns the first rule whose pattern matches one of a weight's names."""
        names = list(names)
        for pattern, wanted in self.rules:
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                return pattern, wanted
        return None

    @property
    def is_float(self) -> bool:
        """Whether no rule packs weights into 8 or 4 bits."""
        return all(wanted.is_float for _, wanted in self.rules)

    @property
    def is_calibrated(self) -> bool:
        """Whether any rule needs to know the model's activations."""
        return any(wanted.rounds_by_outputs or wanted.has_static_scales for _, wanted in self.rules)

    @property
    def fingerprint(self) -> list[Any]:
        """Everything that decides what the weights become, the calibration text's content included."""
        content = None
        if self.is_calibrated and self.details.calibration_file is not None:
            content = hashlib.sha256(Path(self.details.calibration_file).expanduser().read_bytes()).hexdigest()
        return [self.text, dataclasses.asdict(self.details), content]

    def check_calibration(self) -> None:
        """Raises unless there is a text where one is needed."""
        file = self.details.calibration_file
        if not self.is_calibrated or (file is not None and Path(file).expanduser().is_file()):
            return
        found = "null" if file is None else f"{file}, which is no file"
        raise ConfigError(
            f"{QuantizationConfig.NAME}.calibration_file must be a text file, as calibration_method or fp8_activations "
            f"asks for one, found {found}."
        )


def _head_beside(whole: Choice) -> Choice | None:
    """What the head gets under a precision's name; None where it gets what all weights get."""
    if whole.is_float or whole.precision == "int8":
        return None
    # The IPU multiplies no integers.
    on_ipu = whole.precision != "int4" and whole.details.fp8_convention == "ipu"
    return Choice("fp16" if on_ipu else "int8", whole.details)


def _choice(pattern: str, wanted: Any, details: QuantizationConfig) -> Choice:
    """Reads what stands beside a pattern."""
    if not isinstance(wanted, Mapping):
        return Choice(_checked(wanted, pattern), details)
    where = f"{_KEY}.{pattern}"
    options = ["precision", *(name for name in QuantizationConfig.names() if name not in _FOR_ALL)]
    if "precision" not in wanted:
        raise ConfigError(f"{where} has no precision. Add precision: int4, or another of {list(PRECISIONS)}.")
    check_keys(where, wanted, options)
    changes = {key: value for key, value in wanted.items() if key != "precision"}
    return Choice(_checked(wanted["precision"], pattern), dataclasses.replace(details, **changes))


def _checked(precision: Any, pattern: str = "") -> str:
    """Returns the name of a precision.

    Raises:
        ConfigError: there is none of that name.
    """
    if precision in PRECISIONS:
        return str(precision)
    where = f" for {pattern}" if pattern else ""
    hint = did_you_mean(str(precision), PRECISIONS)
    raise ConfigError(f"Invalid precision {precision}{where}, options: {list(PRECISIONS)}. {hint}")


@dataclasses.dataclass(frozen=True)
class _PrecisionRule(Rule):
    def check(self, key: str, value: Any) -> None:
        Recipe.of(value)


PRECISION_RULE = _PrecisionRule("a precision or a recipe", lambda value: True, "int4")
