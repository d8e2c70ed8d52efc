# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints on disk and the PyTorch models that wrote them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import poptransformer
from poptransformer.engine import Engine
from tests.parity.variants import VARIANTS, Variant


@dataclasses.dataclass
class Pair:
    """A checkpoint folder and its reference in PyTorch."""

    variant: Variant
    folder: Path
    make_reference: Any
    _known: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, variant: Variant, folders: pytest.TempPathFactory) -> Pair:
        """Writes the checkpoint, and transformers' own beside it where it has another layout."""
        folder = own = folders.mktemp(variant.name)
        model = scaled(variant.make()).to(getattr(torch, variant.dtype))
        if variant.write is not None:
            own = folders.mktemp(f"{variant.name}-transformers")
            variant.write(model, folder)
        model.save_pretrained(own, **variant.save)
        model_class = type(model)
        return cls(variant, folder, lambda: model_class.from_pretrained(own, dtype=torch.float32).eval())

    @property
    def reference(self) -> Any:
        """A fresh PyTorch model: dynamic rotary embeddings remember the longest row they have seen."""
        return self.make_reference()

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """PyTorch's fp32 logits `[L, V]` of one row of ids `[L]`."""

        def compute() -> np.ndarray:
            with torch.no_grad():
                return self.reference(torch.from_numpy(ids)[None]).logits[0].numpy()

        return self._once(f"logits {ids}", compute)

    def decode_logits(self, ids: np.ndarray, continuation: np.ndarray) -> np.ndarray:
        """PyTorch's logits `[T, V]` after each id of `continuation` `[T]`, fed one by one after the prompt `ids`."""

        def compute() -> np.ndarray:
            model, name = self.reference, self.variant.cache
            with torch.no_grad():
                cache = model(torch.from_numpy(ids)[None], use_cache=True)[name]
                steps = [
                    model(torch.tensor([[token]]), **{name: cache}, use_cache=True).logits[0, -1].numpy()
                    for token in continuation.tolist()
                ]
            return np.stack(steps)

        return self._once(f"decode {ids} {continuation}", compute)

    def generate(self, ids: np.ndarray, **settings: Any) -> list[int]:
        """New ids of transformers' own `generate` for one row."""

        def compute() -> list[int]:
            row = torch.from_numpy(ids)[None]
            beams = self.variant.beams if settings.get("num_beams", 1) > 1 else {}
            output = self.reference.generate(
                row, attention_mask=torch.ones_like(row), do_sample=False, pad_token_id=0, **settings, **beams
            )
            return output[0, len(ids) :].tolist()

        return self._once(f"generate {ids} {settings}", compute)

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def scaled(model: Any) -> Any:
    """Sets seeded weights large enough that logits have a standard deviation of one or more."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if parameter.ndim == 1 and "norm" in name or "ln" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


@pytest.fixture(scope="session", params=VARIANTS, ids=[variant.name for variant in VARIANTS])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.make(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def engine(pair: Pair) -> Engine:
    return poptransformer.load(pair.folder, max_length=64)


@pytest.fixture(scope="session")
def plain_engine(pair: Pair) -> Engine:
    """The same model without the native library: onnxruntime runs the function bodies."""
    from poptransformer.runtime import SessionSettings

    built = poptransformer.load(pair.folder, max_length=64)
    return Engine(built.runtime.compiled, built.checkpoint, SessionSettings(use_native=False))


@pytest.fixture(scope="session")
def saved_engine(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The same model after a round trip through the portable artefact."""
    return poptransformer.load(engine.save(tmp_path_factory.mktemp("saved") / "model"))


@pytest.fixture
def rows(pair: Pair) -> list[np.ndarray]:
    """Prompts of different lengths; the longest passes `max_position_embeddings` of the dynamic variant."""
    rng = np.random.default_rng(7)
    vocab_size = 61 if "gpt2" in pair.variant.name else 67
    prompts = [rng.integers(1, vocab_size - 1, length) for length in (23, 5, 1, 14)]
    return [np.append(prompt, pair.variant.ending).astype(np.int64) for prompt in prompts]
