# SPDX-License-Identifier: Apache-2.0
"""How much each precision changes the model: perplexity, divergence and agreement against transformers in fp32."""
