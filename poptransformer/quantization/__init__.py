# SPDX-License-Identifier: Apache-2.0
"""Quantization of weights: formats, the packed layout, encoders, packed checkpoints, calibration.

The numeric core knows arrays, not graphs; `poptransformer.passes` puts its results into graphs.
"""

from poptransformer.quantization.activations import ActivationStats, collect
from poptransformer.quantization.calibrate import encode_calibrated
from poptransformer.quantization.checkpoints import PackedSource, packed_source
from poptransformer.quantization.encode import encode
from poptransformer.quantization.formats import FLOAT8_FORMATS, FORMATS, Format
from poptransformer.quantization.packed import PackedWeight
from poptransformer.quantization.spec import PER_CHANNEL, PER_TENSOR, WeightSpec

__all__ = [
    "FLOAT8_FORMATS",
    "FORMATS",
    "PER_CHANNEL",
    "PER_TENSOR",
    "ActivationStats",
    "Format",
    "PackedSource",
    "PackedWeight",
    "WeightSpec",
    "collect",
    "encode",
    "encode_calibrated",
    "packed_source",
]
