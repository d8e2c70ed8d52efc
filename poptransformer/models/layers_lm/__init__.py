# SPDX-License-Identifier: Apache-2.0
"""Language models of the layers API."""

MODEL_CLASS = "LayersLM"
MODEL_TYPES = ("layers_lm",)
