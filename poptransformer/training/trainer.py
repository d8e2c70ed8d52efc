# SPDX-License-Identifier: Apache-2.0
"""The loops of training and evaluation."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from poptransformer.errors import ConfigError, PopTransformerError
from poptransformer.training.base_model import PyTorchBaseModel
from poptransformer.training.batches import Batches
from poptransformer.training.checkpoints import checkpoints_of, load_training, load_weights, save_checkpoint
from poptransformer.training.history import LossHistory
from poptransformer.training.optimizers import create_optimizer
from poptransformer.training.randomness import Stream, random_state, seed_everything, set_random_state
from poptransformer.training.schedules import attach, create_schedule
from poptransformer.utils.progress import progress

logger = logging.getLogger(__name__)


class Trainer:
    """Trains and evaluates a model.

    Attributes:
        evaluations: figures of the evaluations during training, by step.

    Args:
        model: returns the loss of a batch.
        params: sections `optimizer` and `runconfig`, complete.
        device: where batches go.
    """

    def __init__(self, model: PyTorchBaseModel, params: Mapping[str, Any], device: torch.device) -> None:
        self.model = model
        self.params = params
        self.device = device
        self.runconfig = params["runconfig"]
        self.model_dir = Path(self.runconfig["model_dir"])
        self.step = 0
        self.evaluations: dict[str, Mapping[str, float]] = {}

    # -- training -----------------------------------------------------------------------------------------------

    def train(self, loader: Iterable[Any], eval_loader: Iterable[Any] | None = None) -> float:
        """Trains up to `max_steps`, from the last checkpoint on; returns the last loss.

        Args:
            loader: batches; begun anew when it ends.
            eval_loader: evaluated every `eval_frequency` steps and at the end.

        Raises:
            PopTransformerError: the loss became infinite or no number.
        """
        optimizer_params = self.params["optimizer"]
        self.optimizer = create_optimizer(optimizer_params, self.model.model)
        self.schedule = attach(create_schedule(optimizer_params["learning_rate"]), self.optimizer)
        self.scaler = self._loss_scaler(optimizer_params.get("loss_scaling_factor"))
        seed_everything(self.runconfig["seed"])
        self.batches = Batches(loader, Stream(random_state()))
        self._resume()
        end = self._last_step(loader)
        history = LossHistory(self.model_dir / "train", self.step)
        loss = history.rows[-1][1] if history.rows else math.nan
        try:
            with progress("training", total=end - self.step) as advance:
                while self.step < end:
                    loss = self._train_step(history)
                    advance(1)
                    self._after_step(end, loss, eval_loader)
            if eval_loader is not None and f"step {self.step}" not in self.evaluations:
                self._evaluate_in_between(eval_loader)  # it ended before its last evaluation, and nothing was left
        finally:
            history.close()
        return loss

    def _loss_scaler(self, factor: Any) -> torch.amp.GradScaler:
        """Scales losses so that 16-bit gradients do not vanish; `dynamic` does nothing where all is fp32."""
        if isinstance(factor, (int, float)):
            return torch.amp.GradScaler(self.device.type, init_scale=float(factor), growth_interval=2**31 - 1)
        return torch.amp.GradScaler(self.device.type, enabled=factor == "dynamic" and self.device.type == "cuda")

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """On a GPU `model.mixed_precision` computes in bfloat16; a CPU computes in fp32, which it does as fast."""
        mixed = bool(self.params["model"].get("mixed_precision", False)) and self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)

    def _train_step(self, history: LossHistory) -> float:
        batch = to_device(self.batches.next(), self.device)
        self.model.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            loss = self.model(batch)
        self.scaler.scale(loss).backward()
        self._clip()
        rate = self.optimizer.param_groups[0]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.step += 1
        value = float(loss.detach())
        history.add(self.step, value, rate)
        if not math.isfinite(value):
            raise PopTransformerError(
                f"The loss of step {self.step} is {value}. Lower optimizer.learning_rate or set "
                "optimizer.max_gradient_norm, and continue from an earlier checkpoint."
            )
        return value

    def _clip(self) -> None:
        optimizer = self.params["optimizer"]
        norm, value = optimizer.get("max_gradient_norm"), optimizer.get("max_gradient_value")
        if norm or value:
            self.scaler.unscale_(self.optimizer)
        if norm:
            torch.nn.utils.clip_grad_norm_(self.model.model.parameters(), norm)
        if value:
            torch.nn.utils.clip_grad_value_(self.model.model.parameters(), value)

    def _after_step(self, end: int, loss: float, eval_loader: Iterable[Any] | None) -> None:
        config, is_last = self.runconfig, self.step == end
        if self.step % config["log_steps"] == 0 or is_last:
            logger.info("step %d: loss %.5f", self.step, loss)
        every = config["checkpoint_steps"]
        if is_last or (every and self.step % every == 0):
            self._save()
        frequency = config["eval_frequency"]
        if eval_loader is not None and (is_last or (frequency and self.step % frequency == 0)):
            self._evaluate_in_between(eval_loader)

    def _evaluate_in_between(self, loader: Iterable[Any]) -> None:
        self.evaluations[f"step {self.step}"] = self.evaluate(loader)

    def _last_step(self, loader: Iterable[Any]) -> int:
        """The step to stop at: the first of `max_steps`, `steps` from here, and `num_epochs`."""
        config = self.runconfig
        ends = [config["max_steps"]] if config["max_steps"] is not None else []
        if config["steps"] is not None:
            ends.append(self.step + config["steps"])
        if config["num_epochs"] is not None:
            try:
                ends.append(config["num_epochs"] * len(loader))  # type: ignore[arg-type]
            except TypeError:
                raise ConfigError("runconfig.num_epochs needs a data loader with a length; set max_steps.") from None
        if not ends:
            raise ConfigError("Set runconfig.max_steps, runconfig.steps or runconfig.num_epochs to say when to stop.")
        if min(ends) <= self.step:
            logger.info("step %d of %d is reached; nothing is left to train.", self.step, min(ends))
        return max(min(ends), self.step)

    def _save(self) -> None:
        training = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "scaler": self.scaler.state_dict(),
            "batches": self.batches.state(),
            "random": random_state(),
        }
        keep = self.runconfig["keep_checkpoint_max"]
        logger.info("saved %s", save_checkpoint(self.model_dir, self.step, self.model.model, training, keep))

    def _resume(self) -> None:
        """Goes to where a checkpoint was written: the one that is named, or the last one of `model_dir`."""
        config = self.runconfig
        folder = Path(config["checkpoint_path"]).expanduser() if config["checkpoint_path"] else None
        saved = checkpoints_of(self.model_dir) if config["autoload_last_checkpoint"] else []
        if folder is not None and config["is_pretrained_checkpoint"] and not saved:
            load_weights(folder, self.model.model)
            logger.info("weights of %s", folder)
            return
        if saved and (folder is None or config["is_pretrained_checkpoint"]):
            folder = saved[-1]  # a run that was killed goes on, wherever its first weights came from
        if folder is None:
            return
        load_weights(folder, self.model.model)
        training = load_training(folder)
        self.step = training["step"]
        self.optimizer.load_state_dict(training["optimizer"])
        self.schedule.last_epoch = training["schedule"]["last_epoch"]
        if training["scaler"]:
            self.scaler.load_state_dict(training["scaler"])
        self.batches.restore(training["batches"])
        set_random_state(training["random"])
        logger.info("continues from %s", folder)

    # -- evaluation ---------------------------------------------------------------------------------------------

    def load(self, checkpoint: Path | None) -> None:
        """Loads weights to evaluate: the named ones, or the last of `model_dir`.

        Raises:
            ConfigError: there are none.
        """
        saved = checkpoints_of(self.model_dir)
        if checkpoint is None and not saved:
            raise ConfigError(f"{self.model_dir} has no checkpoint to evaluate; train first or set --checkpoint_path.")
        folder = checkpoint or saved[-1]
        load_weights(folder, self.model.model)
        found = folder.name.removeprefix("checkpoint_")
        self.step = int(found) if found.isdigit() else 0
        logger.info("evaluates %s", folder)

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Returns the mean loss of a batch, and the model's metrics.

        Raises:
            ConfigError: the loader has no batches.
        """
        model, limit = self.model.model, self.runconfig["eval_steps"]
        for metric in self.model.metrics.values():
            metric.reset()
        outside, was_training = random_state(), model.training
        seed_everything(self.runconfig["seed"])
        model.eval()
        losses, began = [], time.monotonic()
        try:
            with progress("evaluating", total=limit) as advance, self._precision():
                for batch in itertools.islice(loader, limit):
                    losses.append(float(self.model(to_device(batch, self.device))))
                    advance(1)
        finally:
            model.train(was_training)
            set_random_state(outside)
        if not losses:
            raise ConfigError("The data loader has no batches to evaluate. Check eval_input.")
        results = {"eval/loss": sum(losses) / len(losses)}
        results |= {name: metric.compute() for name, metric in self.model.metrics.items()}
        figures = ", ".join(f"{name} {value:.5f}" for name, value in results.items())
        logger.info("step %d: %s (%d batches, %.1f s)", self.step, figures, len(losses), time.monotonic() - began)
        return results


def to_device(data: Any, device: torch.device) -> Any:
    """Moves the tensors of a batch, in whatever dictionaries and lists they come."""
    if isinstance(data, torch.Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, Mapping):
        return {key: to_device(value, device) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        moved = [to_device(value, device) for value in data]
        return type(data)(*moved) if hasattr(data, "_fields") else type(data)(moved)
    return data
