# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: memory and time of poptransformer, measured in processes of their own. See README.md."""
