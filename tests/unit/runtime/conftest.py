# SPDX-License-Identifier: Apache-2.0
"""Fixtures of several files."""

from tests.unit.runtime.cached import cached  # noqa: F401
