# SPDX-License-Identifier: Apache-2.0
"""Training by a params file: `run(model_fn, train_data_fn, eval_data_fn, default_params_fn)`.

The workflow of Neocortex and the Cerebras Model Zoo (PyTorch): the same files, flags and keys.
"""

from poptransformer.errors import PopTransformerError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise PopTransformerError("poptransformer.training needs PyTorch: pip install -r requirements-train.txt") from error

from poptransformer.training.base_model import PyTorchBaseModel
from poptransformer.training.command import run
from poptransformer.training.metrics import AccuracyMetric, Metric, PerplexityMetric
from poptransformer.training.optimizers import OPTIMIZERS, create_optimizer
from poptransformer.training.params import get_params
from poptransformer.training.schedules import SCHEDULES, create_schedule
from poptransformer.training.trainer import Trainer

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AccuracyMetric",
    "Metric",
    "PerplexityMetric",
    "PyTorchBaseModel",
    "Trainer",
    "create_optimizer",
    "create_schedule",
    "get_params",
    "run",
]
