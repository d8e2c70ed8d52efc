# SPDX-License-Identifier: Apache-2.0
"""What a model costs in memory: weights stay in the mapped file, caches cost what is used of them.

Each measurement runs in a process of its own, whose memory nothing else has touched.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from poptransformer import native
from tests.unit.runtime import tiny

pytestmark = pytest.mark.skipif(not native.available(), reason="the custom ops are not built: run `make`")

MB = 1 << 20
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 2560,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1 << 16,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}


@functools.cache
def checkpoint() -> Path:
    """About 50 MB of fp16 weights."""
    folder = tiny.new_folder("large")
    hidden, inner, key_value = CONFIG["hidden_size"], CONFIG["intermediate_size"], 512
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in ("model.layers.0", "model.layers.1"):
        rows = {"q_proj": hidden, "k_proj": key_value, "v_proj": key_value, "o_proj": hidden}
        shapes |= {f"{layer}.self_attn.{name}.weight": (size, hidden) for name, size in rows.items()}
        shapes |= {f"{layer}.mlp.{name}.weight": (inner, hidden) for name in ("gate_proj", "up_proj")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{layer}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    noise = (np.random.default_rng(0).standard_normal(99_991) * 0.02).astype(np.float16)
    save_file({name: np.resize(noise, shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


MEASURE = """
import ctypes, json, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count for the little written to it
import numpy as np
import poptransformer

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

def step(runner, *ids):
    runner.forward(np.array([ids]), np.array([len(ids)]), np.array([[len(ids) - 1]]))

poptransformer.load(sys.argv[2]).generate([1, 2, 3], max_new_tokens=3)  # libraries and thread pools are in
marks = {"start": anonymous()}
engine = poptransformer.load(sys.argv[1])
marks["loaded"] = anonymous()
engine.runtime.step_session
marks["step session"] = anonymous()
engine.runtime.decoder_session
engine.runtime.generator_session
marks["generator session"] = anonymous()
runner = engine.runtime.start(1, 65536)
step(runner, *range(2, 34))
marks["prefill"] = anonymous()
for _ in range(20):
    step(runner, 5)
marks["decode"] = anonymous()
step(runner, *range(2, 514))
step(runner, *range(2, 514))
marks["1024 more"] = anonymous()
json.dump(marks, sys.stdout)
"""


@functools.cache
def measured(folder: Path) -> dict[str, float]:
    """Anonymous memory in MB at several points."""
    command = [sys.executable, "-c", MEASURE, str(folder), str(tiny.folder())]
    root = Path(__file__).parents[3]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120, cwd=root).stdout)


@functools.cache
def saved() -> Path:
    import poptransformer

    return poptransformer.load(checkpoint()).save(tiny.new_folder("large") / "model")


@pytest.mark.parametrize("source", [checkpoint, saved], ids=["checkpoint", "saved"])
def test_weights_are_not_copied(source) -> None:
    marks = measured(source())
    assert (source() / ("model.safetensors" if source is checkpoint else "weights.bin")).stat().st_size > 45 * MB
    # The sessions' own graphs and buffers are a few MB; one copy of the weights would be 50.
    assert marks["generator session"] - marks["start"] < 12, marks


def test_an_empty_cache_costs_what_is_used_of_it() -> None:
    """65536 slots are 4 x 128 MB; a token uses 8 kB of them, and no step touches the rest."""
    marks = measured(checkpoint())
    assert marks["prefill"] - marks["generator session"] < 12, marks
    assert marks["decode"] - marks["prefill"] < 2, marks
    assert marks["1024 more"] - marks["decode"] < 8 + 30, marks  # 8 MB of cache; activations of 512 tokens
