# SPDX-License-Identifier: Apache-2.0
"""Train the small ChatGLM2 of `examples/chatglm2/tiny`, which lets the example talk without a network.

    python examples/chatglm2/train_tiny.py               # writes examples/chatglm2/tiny: 1.3 million parameters in fp16
    python examples/chatglm2/train_tiny.py --text a.txt b.txt --output /tmp/mine --steps 300

The model is transformers' `GlmForCausalLM`, the same function under other names; it is saved in the layout of
THUDM/chatglm2-6b. Text, training and what is reproducible: see `examples/tiny_training.py`. Each chapter is seen twice:
as it stands, and as conversations in ChatGLM2's rounds, where a paragraph is answered by the next one.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what the examples share

import hub_layout
import tiny_training
import torch
from tiny_training import BATCH, PROMPTS
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import GlmConfig, GlmForCausalLM
from transformers.utils.sentencepiece_model_pb2_new import ModelProto

from poptransformer.checkpoint import Tokenizer
from poptransformer.checkpoint.chatglm2_tokenizer import load_chatglm2_tokenizer

logger = logging.getLogger("poptransformer.train_tiny")

VOCAB_SIZE, CONTEXT, WIDTH, LAYERS, HEADS, GROUPS, INNER = 2048, 256, 128, 4, 4, 2, 352
PEAK_RATE = 4e-3
CONTROL_TOKENS = 9  # of the vocabulary's end, see poptransformer.checkpoint.chatglm2_tokenizer
ROUNDS, LONGEST = 3, 200  # of a conversation, and characters of what is said
SENTENCE_END = re.compile(r"[.!?][\"']?(?=\s|$)")
QUESTIONS = ("How do you do, Mr. Darcy?", "Are you not happy here?")


class HubModel(GlmForCausalLM):
    """The model, saved as ChatGLM2's checkpoints are."""

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        folder.mkdir(exist_ok=True)
        hub_layout.write_config(folder, hub_layout.config_of(self.config))
        hub_layout.write_tensors(folder, hub_layout.tensors_of(self))


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def sentencepiece_model(texts: list[str]) -> bytes:
    """Train a BPE with bytes for what it lacks, in the format of SentencePiece: `tokenizer.model`.

    The pieces are `<unk>`, `<s>`, `</s>`, 256 bytes, the joined ones by rank, then the single characters.
    """
    bpe = FastTokenizer(models.BPE())
    spaces = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    lines = pre_tokenizers.Split(Regex("[\n\\d]"), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([lines, spaces])
    size = VOCAB_SIZE - CONTROL_TOKENS - 3 - 256
    alphabet = sorted({*"".join(texts), *"0123456789[]▁问答："} - {"\n", " "})
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size + 1, initial_alphabet=alphabet, show_progress=False)
    )
    known = bpe.get_vocab()
    joined = [piece for piece in sorted(known, key=known.__getitem__) if len(piece) > 1 and "\n" not in piece]
    proto = ModelProto()
    types = proto.SentencePiece
    for name, kind in (("<unk>", types.UNKNOWN), ("<s>", types.CONTROL), ("</s>", types.CONTROL)):
        proto.pieces.add(piece=name, score=0.0, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=types.BYTE)
    for rank, piece in enumerate([*joined, *alphabet][:size]):
        proto.pieces.add(piece=piece, score=-float(rank), type=types.NORMAL)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString(deterministic=True)


class TokenizerFiles:
    """The tokenizer of a folder, for `tiny_training.save`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save(folder)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train the tokenizer and open it as a checkpoint's is opened."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(sentencepiece_model(texts))
        return load_chatglm2_tokenizer(Path(folder), None, (2,))


# -- data --------------------------------------------------------------------------------------------------------------


def beginning(paragraph: str) -> str:
    """Return the first sentences of a paragraph, `LONGEST` characters at most; nothing if the first one is longer."""
    ends = [match.end() for match in SENTENCE_END.finditer(paragraph) if match.end() <= LONGEST]
    return paragraph[: ends[-1]] if ends else ""


def conversations(tokenizer: Tokenizer, chapter: str, chance: random.Random) -> Iterator[str]:
    """Yield a chapter as conversations of up to `ROUNDS` rounds, as the chat template writes them."""
    messages: list[dict[str, str]] = []
    rounds = chance.randint(1, ROUNDS)
    for paragraph in chapter.split("\n"):
        words = beginning(paragraph)
        if not words:
            messages = []
            continue
        messages.append({"role": ("user", "assistant")[len(messages) % 2], "content": words})
        if len(messages) == 2 * rounds:
            yield tokenizer.apply_chat_template(messages).removesuffix("\n\n")
            messages, rounds = [], chance.randint(1, ROUNDS)


def encode(tokenizer: Tokenizer, texts: list[str], talk: random.Random | None) -> torch.Tensor:
    """Join the ids of chapters, and of conversations where `talk` draws their lengths, each ended: int64 [tokens]."""
    documents: list[list[int]] = []
    for chapter in texts:
        documents.append(tokenizer.encode(chapter))
        if talk is not None:
            written = conversations(tokenizer, chapter, talk)
            documents += [tokenizer.encode(text, add_special_tokens=False) for text in written]
    if talk is not None:
        talk.shuffle(documents)
    return torch.tensor([index for document in documents for index in (*document, tokenizer.eos_token_id)])


def new_model() -> HubModel:
    """Build the untrained model."""
    config = GlmConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=2 * CONTEXT,
        rms_norm_eps=1e-5,
        attention_bias=True,
        pad_token_id=0,
        eos_token_id=2,
    )
    return HubModel(config)


def show_samples(model: HubModel, tokenizer: Tokenizer, seed: int) -> None:
    """Print greedy and top-5 texts: continuations of the GPT-2 example's prompts, and answers."""
    prompts = [(prompt, tokenizer.encode(prompt)) for prompt in PROMPTS]
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": question}])
        prompts.append((question, tokenizer.encode(text, add_special_tokens=False)))
    for prompt, ids in prompts:
        for name, options in (("greedy", {"do_sample": False}), ("top-5", {"do_sample": True, "top_k": 5})):
            torch.manual_seed(seed)
            row = torch.tensor([ids])
            answer = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=100, **options)[
                0, len(ids) :
            ]
            print(f"--- {name}: {prompt}\n{tokenizer.decode(answer.tolist())}")


def main() -> None:
    """Train, save, and report losses and samples of the saved weights."""
    output = Path(__file__).resolve().parent / "tiny"
    options = tiny_training.parse_options(
        "Train a small ChatGLM2 and save it as an fp16 checkpoint.", output, steps=2600, threads=1
    )
    kept, held_out = tiny_training.read_texts(options.text, BATCH * CONTEXT)
    tokenizer = train_tokenizer(kept)
    ids, validation_ids = encode(tokenizer, kept, random.Random(options.seed)), encode(tokenizer, held_out, None)
    model = new_model()
    logger.info("%d + %d tokens; %d parameters", len(ids), len(validation_ids), model.num_parameters())
    windows = tiny_training.batches(ids, CONTEXT, torch.Generator().manual_seed(options.seed))
    tiny_training.train(model, windows, options.steps, PEAK_RATE)
    tiny_training.save(model, TokenizerFiles(tokenizer), options.output)

    model = model.float().eval()  # the fp16 numbers that were saved
    size = sum(len(text.encode()) for text in held_out)
    per_token, per_byte = tiny_training.validation(model, validation_ids, size, CONTEXT)
    print(f"validation: {per_token:.4f} nats/token, {per_byte:.4f} nats/byte")
    show_samples(model, tokenizer, options.seed)


if __name__ == "__main__":
    main()
