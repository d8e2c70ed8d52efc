# SPDX-License-Identifier: Apache-2.0
"""The kernels' pool of threads: sharing it, resizing it, forking."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper


@pytest.fixture
def linear(kernels):
    """Runs Linear, and what it must give, bit by bit."""
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((3, 300), np.float32), random.standard_normal((500, 300), np.float32)
    node = helper.make_node("Linear", ["x", "weight"], ["y"], domain="poptransformer")
    session = kernels.session(node, {"x": x}, {"y": TensorProto.FLOAT}, weight=weight)
    expected = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(expected, x @ weight.T, atol=1e-3)
    return lambda: np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_sessions_of_several_threads_share_the_pool(kernels, linear):
    kernels.threads(2)
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(linear) for _ in range(400)]:
            future.result()


def test_resizing_while_kernels_run(kernels, linear):
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(linear) for _ in range(200)]
        for count in (3, 1, 2, 5, 1, 2):
            kernels.threads(count)
        for future in futures:
            future.result()


def test_sleeping_threads_wake_up(kernels, linear):
    for pause in (0, 1e-4, 2e-3, 0.02):  # the pool spins for 3e-4 s
        for _ in range(5):
            time.sleep(pause)
            linear()


def test_zero_threads_is_one_per_core(kernels):
    try:
        assert kernels.library.poptransformer_set_threads(0) == len(os.sched_getaffinity(0))
        assert kernels.library.poptransformer_get_threads() == len(os.sched_getaffinity(0))
    finally:
        kernels.threads(1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_its_own_threads(kernels, linear):
    kernels.threads(2)
    linear()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that hangs must not outlive the test
        try:
            linear()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    linear()
