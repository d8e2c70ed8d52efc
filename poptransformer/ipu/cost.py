# SPDX-License-Identifier: Apache-2.0
"""Cycles of one piece of work on an IPU: `max over tiles of compute + sum over phases of (exchange + sync)`."""

from __future__ import annotations

import dataclasses
import functools
import math

from poptransformer.ipu.attention import attention_cost
from poptransformer.ipu.cycles import FREE, Cycles
from poptransformer.ipu.device import Device
from poptransformer.ipu.product import product_cost
from poptransformer.ipu.work import Attention, Collective, Lookup, Move, Numbers, Product, Recurrence, Vector, Work

__all__ = ["Cycles", "cost"]


@functools.cache
def cost(device: Device, work: Work | None, numbers: Numbers) -> Cycles:
    """Returns what a piece of work takes on all tiles of an IPU.

    Args:
        device: the IPU.
        work: what is to be done; None is a view.
        numbers: the formats it is done in.
    """
    match work:
        case None:
            return FREE
        case Product():
            return product_cost(device, work, numbers)
        case Attention():
            return attention_cost(device, work, numbers)
        case Vector():
            return _vector(device, work, numbers)
        case Lookup():
            return _lookup(device, work, numbers)
        case Move():
            return _move(device, work.elements, numbers)
        case Recurrence():
            return _recurrence(device, work, numbers)
        case Collective():
            return _collective(device, work, numbers)


def _vector(device: Device, work: Vector, numbers: Numbers) -> Cycles:
    """Each tile works on its own elements; more than one operand means that one must come to the other's tiles."""
    share = math.ceil(work.elements / device.tiles)
    nbytes = share * numbers.activation_bytes
    compute = device.launch_cycles + work.passes * work.operands * nbytes / device.copy_bytes
    phases = work.reductions + (work.operands > 1)
    exchange = (work.operands > 1) * nbytes / device.exchange_bytes + phases * device.fragment_cycles
    return Cycles(compute, exchange, phases * device.sync_cycles, temporary=nbytes * (work.operands - 1))


def _lookup(device: Device, work: Lookup, numbers: Numbers) -> Cycles:
    """Indices go to all tiles, the rows' parts come back."""
    nbytes = math.ceil(work.rows * work.columns / device.tiles) * numbers.activation_bytes
    exchange = work.rows * 4 / device.exchange_bytes + nbytes / device.exchange_bytes + 2 * device.fragment_cycles
    compute = device.launch_cycles * work.rows + nbytes / device.copy_bytes
    return Cycles(compute, exchange, 2 * device.sync_cycles, temporary=nbytes)


def _move(device: Device, elements: int, numbers: Numbers) -> Cycles:
    nbytes = math.ceil(elements / device.tiles) * numbers.activation_bytes
    compute = device.copy_call_cycles + nbytes / device.copy_bytes
    exchange = nbytes / device.exchange_bytes + device.fragment_cycles
    return Cycles(compute, exchange, device.sync_cycles, temporary=nbytes)


def _recurrence(device: Device, work: Recurrence, numbers: Numbers) -> Cycles:
    """Channels do not depend on each other, so tiles need not talk; a step must end before the next."""
    nbytes = math.ceil(work.elements / device.tiles) * 4  # the state is kept in fp32
    compute = work.steps * (device.launch_cycles + work.passes * nbytes / device.copy_bytes)
    share = math.ceil(work.steps * work.elements / device.tiles) * numbers.activation_bytes
    return Cycles(compute, share / device.exchange_bytes + device.fragment_cycles, device.sync_cycles, temporary=share)


def _collective(device: Device, work: Collective, numbers: Numbers) -> Cycles:
    """A ring: every replica sends to its neighbour, 2(R-1) times to reduce, R-1 times to gather."""
    R = work.replicas
    nbytes = work.elements * numbers.activation_bytes
    hops = (R - 1) * (2 if work.kind == "all_reduce" else 1)
    share = nbytes / R
    added = (R - 1) * share / device.tiles / device.copy_bytes if work.kind == "all_reduce" else 0.0
    link = hops * (device.link_cycles(share) + device.ipu_sync_cycles(R))
    return Cycles(compute=added, link=link, temporary=math.ceil(nbytes / device.tiles))


def hop_cost(device: Device, nbytes: float) -> Cycles:
    """Activations on their way from one stage to the next."""
    return Cycles(link=device.link_cycles(nbytes) + device.ipu_sync_cycles(2))


def host_cost(device: Device, nbytes: float) -> Cycles:
    """Bytes from or to the host, and the sync with it."""
    return Cycles(sync=device.global_sync_cycles, link=nbytes / device.host_bytes_per_s * device.clock_hz)


def with_amp_factor(device: Device, factor: float) -> Device:
    """The same device with other matrix kernels."""
    return dataclasses.replace(device, amp_factor=factor)
