# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate: python run.py CPU --mode train --params configs/params_tiny.yaml."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed

from data import get_eval_dataloader, get_train_dataloader
from model import LinformerForMaskedLM
from utils import set_defaults

from poptransformer.training import run

if __name__ == "__main__":
    run(
        model_fn=LinformerForMaskedLM,
        train_data_fn=get_train_dataloader,
        eval_data_fn=get_eval_dataloader,
        default_params_fn=set_defaults,
    )
