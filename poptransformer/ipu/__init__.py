# SPDX-License-Identifier: Apache-2.0
"""Emulated IPUs: what a graph costs there, what it needs, and how to divide it among them."""
