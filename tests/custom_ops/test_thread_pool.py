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


@pytest.mark.parametrize("count", [3, 8, 31, 33, 70])
@pytest.mark.parametrize("rows", [1, 700])
def test_more_threads_than_cores_and_than_a_job_has_pieces(kernels, count, rows):
    """With 700 rows a job has four parts for each thread: 280 for 70, of which several are taken at once."""
    random = np.random.default_rng(count)
    x, weight = random.standard_normal((rows, 300), np.float32), random.standard_normal((900, 300), np.float32)
    kernels.threads(count)
    for _ in range(3):
        (found,) = kernels.run("Linear", [x, weight])
        np.testing.assert_allclose(found, x @ weight.T, rtol=1e-4, atol=1e-3)


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
