# SPDX-License-Identifier: Apache-2.0
"""Checks a parallel plan: runs it and the model in one piece on the same prompts, and compares their logits by step.

    python -m poptransformer.verify_plan --config-dir examples/gpt2/conf --config-name tp

Takes the configuration of an example, and whatever Hydra takes. The model in one piece generates greedily; the plan is
then fed the same tokens. Printed for each step: the largest difference of a logit, the Kullback-Leibler divergence (in
nats) of the plan's distribution from the other one, and in how many rows the likeliest token is the same. Exit status 1
where the plan is further off than the bound.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from poptransformer.engine import Engine
from poptransformer.generation import right_padded
from poptransformer.utils import hydra_main, prepare_model_session

STEPS = 64
REFERENCE_TIMEOUT = 6 * 3600.0  # seconds
# Sums in another order differ in the last bits of fp32. Where inputs of packed weights are rounded to 8 bits, that can
# tip them: there the distributions are compared.
BOUND, KL_BOUND = 1e-4, 0.05
# What makes a configuration one of a single device.
ONE_DEVICE: dict[str, dict[str, Any]] = {
    "global_args": {"model_type": "shard", "num_replicas": 1, "enable_pipeline": False},
    "model": {"layer_per_ipu": None},
    "session": {"distributed": "threads", "profile_name": None},
}


@dataclasses.dataclass(frozen=True)
class StepComparison:
    """One step of all rows.

    Attributes:
        max_error: largest difference of a logit.
        divergence: largest KL divergence of a row, in nats.
        agreeing: rows whose likeliest token is the same.
        rows: all rows.
        bit_equal: whether all logits are the same bits.
    """

    max_error: float
    divergence: float
    agreeing: int
    rows: int
    bit_equal: bool

    @classmethod
    def of(cls, expected: np.ndarray, found: np.ndarray) -> StepComparison:
        """Compares logits fp32 `[B, V]`."""
        agreeing = int((expected.argmax(-1) == found.argmax(-1)).sum())
        return cls(
            max_error=float(np.abs(expected - found).max()),
            divergence=float(kl_divergence(expected, found).max()),
            agreeing=agreeing,
            rows=len(expected),
            bit_equal=expected.tobytes() == found.tobytes(),
        )


def kl_divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(expected || found) of the distributions of logits `[B, V]`, in nats, `[B]`."""

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    p, q = log_softmax(expected), log_softmax(found)
    return (np.exp(p) * (p - q)).sum(-1)


def logits_of(engine: Engine, rows: Sequence[Sequence[int]], steps: int, forced: np.ndarray | None = None) -> Any:
    """Returns logits fp32 `[T, B, V]` of greedy steps, and the tokens int64 `[T, B]` that were fed.

    Args:
        engine: runs the model.
        rows: the prompts.
        steps: T; the prompts are the first.
        forced: tokens to feed in place of the likeliest.
    """
    ids, lengths, positions = right_padded(rows)
    runner = engine.runtime.start(len(rows), ids.shape[1] + steps)
    logits, tokens = [runner.forward(ids, lengths, positions).numpy()[:, -1].copy()], []
    one, first = np.ones(len(rows), np.int64), np.zeros((len(rows), 1), np.int64)
    for number in range(steps - 1):
        tokens.append(logits[-1].argmax(-1) if forced is None else forced[number])
        logits.append(runner.forward(tokens[-1][:, None], one, first).numpy()[:, -1].copy())
    return np.stack(logits), np.array(tokens, np.int64).reshape(steps - 1, len(rows))


def report(comparisons: Sequence[StepComparison]) -> str:
    """Formats the steps and their worst."""
    lines = [f"{'step':>6} {'max error':>12} {'KL (nats)':>12} {'same token':>12}"]
    for number, step in enumerate(comparisons):
        equal = "  bit-equal" if step.bit_equal else ""
        same = f"{step.agreeing}/{step.rows}"
        lines.append(f"{number:>6} {step.max_error:>12.3e} {step.divergence:>12.3e} {same:>12}{equal}")
    worst = max(step.max_error for step in comparisons), max(step.divergence for step in comparisons)
    agreeing, rows = sum(step.agreeing for step in comparisons), sum(step.rows for step in comparisons)
    equal_steps = sum(step.bit_equal for step in comparisons)
    lines.append(f"{'all':>6} {worst[0]:>12.3e} {worst[1]:>12.3e} {f'{agreeing}/{rows}':>12}")
    lines.append(f"greedy agreement {agreeing / rows:.2%}, {equal_steps} of {len(comparisons)} steps bit-equal")
    return "\n".join(lines)


def verdict(
    comparisons: Sequence[StepComparison], is_float: bool, bound: float | None, kl_bound: float | None
) -> str | None:
    """Says what is past its bound; None where nothing is.

    Args:
        comparisons: the steps.
        is_float: whether the weights are; their default bound is on the logits, that of others on the divergence.
        bound: on the largest difference of a logit, in place of the default.
        kl_bound: on the divergence, in place of the default.
    """
    if bound is None and kl_bound is None:
        bound, kl_bound = (BOUND, None) if is_float else (None, KL_BOUND)
    error, divergence = (max(getattr(step, name) for step in comparisons) for name in ("max_error", "divergence"))
    # Written so that NaN is past every bound.
    if bound is not None and not error <= bound:
        return f"the largest difference {error:.3e} is past the bound {bound:g}"
    if kl_bound is not None and not divergence <= kl_bound:
        return f"the KL divergence {divergence:.3e} is past the bound {kl_bound:g}"
    return None


def one_device(config: DictConfig) -> dict[str, Any]:
    """Returns the configuration of the same model in one piece."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    for group, keys in ONE_DEVICE.items():
        values[group] = {**(values.get(group) or {}), **keys}
    return values


def verify(config: DictConfig, options: argparse.Namespace) -> bool:
    """Runs both, prints the comparison; returns whether the plan is within the bound.

    Under MPI rank 0 runs the model in one piece, compares, and decides.
    """
    world = _world(config)
    reference = None
    if world is None or world.rank == 0:
        session, model = prepare_model_session(one_device(config))
        rows = _rows(model, config.inputs)
        reference = logits_of(session.engine, rows, _steps(model, rows, options.steps))
        del session, model  # one model in memory at a time
    if world is not None:
        _wait_for_reference(world)
    session, model = prepare_model_session(config)
    rows = _rows(model, config.inputs)
    steps = _steps(model, rows, options.steps)
    tokens = np.zeros((steps - 1, len(rows)), np.int64) if reference is None else reference[1]
    if world is not None:
        world.agree(tokens, "the tokens of the reference")
    found, _ = logits_of(session.engine, rows, steps, tokens)
    if reference is None:
        return True
    comparisons = [StepComparison.of(*pair) for pair in zip(reference[0], found, strict=True)]
    info = session.engine.runtime.compiled.info
    ranks = f"{info.num_replicas} replicas x {info.num_stages} stages"
    print(f"{info.source}, {info.precision}: {ranks} against one device")
    print(report(comparisons))
    problem = verdict(comparisons, model.build.recipe.is_float, options.bound, options.kl_bound)
    print(f"FAILED: {problem}" if problem else "ok: within the bound")
    return problem is None


def _rows(model: Any, inputs: Mapping[str, Any]) -> list[list[int]]:
    input_dict = model.build_input_dict(**inputs)
    pairs = zip(input_dict["input_ids"], input_dict["lengths"], strict=True)
    return [ids[:length].tolist() for ids, length in pairs]


def _steps(model: Any, rows: Sequence[Sequence[int]], wanted: int) -> int:
    return max(1, min(wanted, model.max_loop or wanted, model.max_length - max(map(len, rows))))


def _world(config: DictConfig) -> Any:
    """All ranks of a plan that runs under MPI."""
    if OmegaConf.select(config, "session.distributed") != "mpi":
        return None
    from poptransformer.parallel.mpi import world

    return world()


def _wait_for_reference(world: Any) -> None:
    """Lets the other ranks wait for rank 0, for as long as a model in one piece may take."""
    timeout, world.waiter.timeout = world.waiter.timeout, REFERENCE_TIMEOUT
    world.agree(np.zeros(1, np.int64), "the reference")
    world.waiter.timeout = timeout


def main() -> None:
    """Reads this command's own options, and leaves the others to Hydra."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--bound", type=float)
    parser.add_argument("--kl-bound", type=float)
    options, sys.argv[1:] = parser.parse_known_args()
    if options.steps < 1:
        parser.error("--steps must be 1 or more")

    @hydra_main(config_path=None, config_name="tp")
    def command(config: DictConfig) -> None:
        if not verify(config, options):
            sys.exit(1)

    command()


if __name__ == "__main__":
    main()
