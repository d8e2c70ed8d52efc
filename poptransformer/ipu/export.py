# SPDX-License-Identifier: Apache-2.0
"""A plan as JSON: `plan.json`, with everything that it rests on."""

from __future__ import annotations

import dataclasses
from typing import Any

from poptransformer.ipu.cost import cost
from poptransformer.ipu.explain import ASSUMPTIONS, footer
from poptransformer.ipu.memory import footprint
from poptransformer.ipu.plan import Plan, Stage
from poptransformer.ipu.planner import Search
from poptransformer.ipu.segments import Segment
from poptransformer.ipu.timeline import levels, segments_of
from poptransformer.ipu.validation import rows

SCHEMA_VERSION = 1


def plan_json(plan: Plan) -> dict[str, Any]:
    """Returns a plan: seconds, bytes and cycles."""
    return {
        "num_replicas": plan.replicas,
        "layer_per_ipu": plan.layer_per_ipu,
        "is_pipelined": plan.is_pipelined,
        "ipus": plan.ipus,
        "ipus_reserved": plan.reserved,
        "fits": plan.fits,
        "seconds_per_token": plan.latency,
        "seconds_per_prompt": plan.device.seconds(plan.prompt.total),
        "tokens_per_second": plan.tokens_per_second,
        "bubble": plan.bubble,
        "token_cycles": plan.token.parts(),
        "prompt_cycles": plan.prompt.parts(),
        "bound": plan.token.bound,
        "memory_proportion": plan.device.memory_proportion,
        "stages": [_stage_json(plan, stage) for stage in plan.stages],
    }


def _stage_json(plan: Plan, stage: Stage) -> dict[str, Any]:
    return {
        "index": stage.index,
        "holds": stage.content,
        "weight_bytes": stage.weight_bytes,
        "bytes_on_fullest_tile": stage.memory,
        "limit": plan.device.tile_bytes,
        "fullest_moment": stage.peak.name,
        "token_cycles": stage.token.parts(),
        "prompt_cycles": stage.prompt.parts(),
        "link_cycles_to_next": stage.hop.total,
    }


def op_json(plan: Plan) -> list[dict[str, Any]]:
    """Returns the nodes of a token's step; of blocks that are alike, the first."""
    known: set[object] = set()
    found = []
    for stage in plan.stages:
        for segment in segments_of(plan, stage):
            if segment.signature in known:
                continue
            known.add(segment.signature)
            for op in segment.ops:
                if op.work is not None:
                    cycles = cost(plan.device, op.work, plan.replica.numbers)
                    work = {"kind": type(op.work).__name__, **dataclasses.asdict(op.work)}
                    needs = footprint(plan.device, Segment(op.name, (op,)), plan.replica.numbers)
                    stored = needs.bytes_per_tile(plan.device)
                    entry = {"segment": segment.name, "node": op.name, "work": work, "cycles": cycles.parts()}
                    found.append(entry | {"how": cycles.how, "bytes_per_tile": stored})
    return found


def liveness_json(plan: Plan) -> dict[str, Any]:
    """Returns what comes and goes on the fullest stage while a token is computed, bytes of a tile, node by node."""
    stage = plan.worst
    found = levels(plan, stage, plan.replica.token)
    nodes = [{"node": one.name, **{name: one.bytes[name] for name in ("activations", "partials")}} for one in found]
    return {"stage": stage.index, "nodes": nodes}


def report_json(name: str, objective: str, plan: Plan, found: Search, own: Plan | None, words: list[str]) -> Any:
    """Returns the content of `plan.json`.

    Args:
        name: what the model is called.
        objective: what was looked for.
        plan: the chosen plan.
        found: what it was chosen from.
        own: the user's own plan.
        words: the explanation.
    """
    import poptransformer

    device = plan.device
    described = {"name": device.name, "description": device.description, "constants": device.constants()}
    return {
        "schema_version": SCHEMA_VERSION,
        "poptransformer": poptransformer.__version__,
        "model": name,
        "objective": objective,
        "workload": dataclasses.asdict(plan.replica.workload),
        "numbers": dataclasses.asdict(plan.replica.numbers),
        "device": described,
        "assumptions": list(ASSUMPTIONS),
        "accuracy": footer(),
        "validation": [dataclasses.asdict(row) | {"error": row.error, "passes": row.passes} for row in rows()],
        "explanation": words,
        "plan": plan_json(plan),
        "own_plan": None if own is None else plan_json(own),
        "front": [plan_json(other) for other in found.front],
        "rejected_replicas": {str(count): reason for count, reason in found.rejected.items()},
        "ops": op_json(plan),
        "liveness": liveness_json(plan),
    }
