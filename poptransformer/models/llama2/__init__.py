# SPDX-License-Identifier: Apache-2.0
"""Llama 2 and 3 and everything else with the Llama architecture."""

MODEL_CLASS = "LLAMA2DecModel"
MODEL_TYPES = ("llama",)
