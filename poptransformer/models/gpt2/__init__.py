# SPDX-License-Identifier: Apache-2.0
"""GPT-2."""

MODEL_CLASS = "GPT2DecModel"
MODEL_TYPES = ("gpt2",)
