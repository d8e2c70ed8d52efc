# SPDX-License-Identifier: Apache-2.0
"""What the `train_tiny.py` scripts have in common: text, tokenizer, training, losses and samples.

Text: the six completed novels of Jane Austen (died 1817; public domain), 4.0 MB, from the Debian and Ubuntu package
`r-cran-janeaustenr` (its own code: MIT). `apt-get download` fetches it into a temporary folder; nothing is installed
and no root is needed, but apt must know its package lists (`apt-get update`). `--text` takes UTF-8 files instead.
Every twentieth chapter is held out for the validation loss.

Reproducible: weights, batches and samples follow `--seed`. On one machine, with the same torch build, two runs write
the same bytes; elsewhere the order of floating-point sums differs, and so do the last digits of the loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tiny_text import END_OF_TEXT, PARAGRAPHS, chapters, debian_novels
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

logger = logging.getLogger("poptransformer.train_tiny")

BATCH, WARMUP, WEIGHT_DECAY, CLIP = 8, 100, 0.1, 1.0
HELD_OUT_EVERY = 20  # chapters
LOG_EVERY = 100  # steps
PROMPTS = ("My name is Lewis and I like to", "It was a fine morning, and", "She looked at him, and said")


@dataclasses.dataclass(frozen=True)
class Training:
    """One model's part of it.

    Attributes:
        name: of the architecture, for messages.
        new_model: makes the untrained model; takes the id of `<|endoftext|>`.
        vocab_size: pieces of the tokenizer.
        context: tokens of a training window.
        peak_rate: highest learning rate.
        steps: optimizer steps by default.
        threads: of torch; sums of another number of threads differ in their last digits.
        output: folder to write by default.
        before_saving: changes the trained model's config into the one that is saved.
    """

    name: str
    new_model: Callable[[int], PreTrainedModel]
    vocab_size: int
    context: int
    peak_rate: float
    steps: int
    threads: int
    output: Path
    before_saving: Callable[[PreTrainedModel], None] = lambda model: None


def train_bpe(texts: list[str], vocab_size: int, special_tokens: list[str]) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` pieces; the special tokens have the first ids."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def train_tokenizer(texts: list[str], training: Training) -> GPT2Tokenizer:
    """Train a tokenizer whose `<|endoftext|>` has id 0 and serves as bos, eos and padding."""
    bpe = train_bpe(texts, training.vocab_size, [END_OF_TEXT])
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    return GPT2Tokenizer(tokenizer_object=bpe, model_max_length=training.context, **special)


def encode(tokenizer: GPT2Tokenizer, texts: list[str]) -> torch.Tensor:
    """Join the texts' ids, each text closed by `<|endoftext|>`, as int64 [tokens]."""
    return torch.tensor(tokenizer("".join(text + END_OF_TEXT for text in texts), verbose=False)["input_ids"])


def loss_of(model: PreTrainedModel, windows: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Next-token cross entropy in nats of int64 windows [B, L + 1], as a float32 scalar."""
    logits = model(windows[:, :-1], use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


def validation(model: PreTrainedModel, ids: torch.Tensor, size: int, context: int) -> tuple[float, float]:
    """Return nats per token and nats per byte over held-out ids [tokens] of `size` bytes, every token but one."""
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, context):
            nats += float(loss_of(model, ids[None, start : start + context + 1], "sum"))
    return nats / (len(ids) - 1), nats / size


def batches(ids: torch.Tensor, context: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield int64 windows [BATCH, context + 1] for ever; an epoch shuffles all windows from a new random offset."""
    while True:
        offset = int(torch.randint(context, (1,), generator=generator))
        starts = torch.arange(offset, len(ids) - context, context)
        for row in starts[torch.randperm(len(starts), generator=generator)].split(BATCH):
            if len(row) == BATCH:
                yield ids[row[:, None] + torch.arange(context + 1)]


def train(
    model: PreTrainedModel,
    batches: Iterable[Any],
    steps: int,
    peak_rate: float,
    loss_of: Callable[[Any, Any], torch.Tensor] = loss_of,
) -> None:
    """Run `steps` of AdamW: linear warm-up, cosine decay to a fiftieth, weight decay on matrices only."""
    matrices = {"params": [weight for weight in model.parameters() if weight.ndim == 2], "weight_decay": WEIGHT_DECAY}
    vectors = {"params": [weight for weight in model.parameters() if weight.ndim != 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, vectors], lr=peak_rate, betas=(0.9, 0.95), fused=True)
    warmup = min(WARMUP, steps // 10 + 1)
    began, total = time.monotonic(), 0.0
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        cosine = 0.51 + 0.49 * math.cos(math.pi * max(step - warmup, 0) / max(steps - warmup, 1))
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(step / warmup, cosine)
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        total += float(loss.detach())
        if step % LOG_EVERY == 0:
            seconds = time.monotonic() - began
            logger.info("step %5d/%d  loss %.4f nats/token  %.0f s", step, steps, total / LOG_EVERY, seconds)
            total = 0.0


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the fp16 checkpoint to a new folder beside `output`, then swap the two; other files there are kept."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        staging, retired = Path(folder) / "new", Path(folder) / "old"
        if output.exists():
            shutil.copytree(output, staging)
        model.half().save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only
        if output.exists():
            output.rename(retired)
        staging.rename(output)


def show_samples(folder: Path, seed: int) -> None:
    """Print greedy and top-5 continuations of `PROMPTS` by the checkpoint as a user would load it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        for name, options in (("greedy", {"do_sample": False}), ("top-5", {"do_sample": True, "top_k": 5})):
            torch.manual_seed(seed)
            ids = model.generate(**inputs, max_new_tokens=100, **options)
            print(f"--- {name}\n{tokenizer.decode(ids[0], skip_special_tokens=True)}")


def parse_options(description: str, output: Path, steps: int, threads: int) -> argparse.Namespace:
    """Read the command line, which is the same for every model, and prepare torch and the log."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=output, help="folder to write")
    parser.add_argument("--steps", type=int, default=steps, help=f"optimizer steps (default: {steps})")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and samples (default: 0)")
    parser.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="UTF-8 text files instead of the novels")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    return options


def read_texts(files: list[Path] | None, least_bytes: int) -> tuple[list[str], list[str]]:
    """Return the chapters to train on and the held-out ones, of the given files or of the novels."""
    books = [path.read_text("utf-8").splitlines() for path in files] if files else debian_novels()
    texts = [chapter for book in books for chapter in chapters(book)]
    held_out = texts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    kept = [text for index, text in enumerate(texts, 1) if index % HELD_OUT_EVERY]
    if len(kept) < HELD_OUT_EVERY - 1 or sum(len(text.encode()) for text in held_out) < least_bytes:
        raise SystemExit(f"expected {HELD_OUT_EVERY} chapters (or {PARAGRAPHS} paragraphs as one), found {len(texts)}")
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    logger.info("text %s: %d chapters, %d of them held out", digest, len(texts), len(held_out))
    return kept, held_out


def main(training: Training) -> None:
    """Train, save, and report losses and samples of the saved checkpoint."""
    description = f"Train a small {training.name} and save it as an fp16 checkpoint."
    options = parse_options(description, training.output, training.steps, training.threads)
    kept, held_out = read_texts(options.text, BATCH * training.context)
    tokenizer = train_tokenizer(kept, training)
    ids, validation_ids = encode(tokenizer, kept), encode(tokenizer, held_out)
    model = training.new_model(tokenizer.eos_token_id)
    logger.info("%d + %d tokens; %d parameters", len(ids), len(validation_ids), model.num_parameters())
    windows = batches(ids, training.context, torch.Generator().manual_seed(options.seed))
    train(model, windows, options.steps, training.peak_rate)
    training.before_saving(model)
    save(model, tokenizer, options.output)

    saved = AutoModelForCausalLM.from_pretrained(options.output).float()
    size = sum(len(text.encode()) for text in held_out)
    per_token, per_byte = validation(saved, validation_ids, size, training.context)
    print(f"validation: {per_token:.4f} nats/token, {per_byte:.4f} nats/byte")
    show_samples(options.output, options.seed)
