# SPDX-License-Identifier: Apache-2.0
"""Data to train with: TFRecord files, word pieces, documents, masked language modelling. Needs no torch."""
