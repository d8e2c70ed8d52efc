# SPDX-License-Identifier: Apache-2.0
"""Pictures of a plan: memory, liveness, phases, and what else there could be."""

from poptransformer.ipu.pictures.gantt import draw_gantt
from poptransformer.ipu.pictures.memory import draw_liveness, draw_memory
from poptransformer.ipu.pictures.sweep import Variant, draw_sweep

__all__ = ["Variant", "draw_gantt", "draw_liveness", "draw_memory", "draw_sweep"]
