# SPDX-License-Identifier: Apache-2.0
"""RWKV-4."""

MODEL_CLASS = "RWKVDecodeModel"
MODEL_TYPES = ("rwkv",)
