# SPDX-License-Identifier: Apache-2.0
"""Train the small GPT-2 of `examples/gpt2/tiny`, which lets the GPT-2 example write English without a network.

    python examples/gpt2/train_tiny.py                   # writes examples/gpt2/tiny: 1.1 million parameters in fp16
    python examples/gpt2/train_tiny.py --text a.txt b.txt --output /tmp/mine --steps 500

Text: the six completed novels of Jane Austen (died 1817; public domain), 4.0 MB, from the Debian and Ubuntu package
`r-cran-janeaustenr` (its own code: MIT). `apt-get download` fetches it into a temporary folder; nothing is installed
and no root is needed, but apt must know its package lists (`apt-get update`). `--text` takes UTF-8 files instead.
Every twentieth chapter is held out for the validation loss.

Reproducible: weights, batches and samples follow `--seed`. On one machine, with the same torch build, two runs write
the same bytes; elsewhere the order of floating-point sums differs, and so do the last digits of the loss.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import re
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

logger = logging.getLogger("poptransformer.train_tiny")

DEBIAN_PACKAGE = "r-cran-janeaustenr"
DEBIAN_DATA_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
END_OF_TEXT = "<|endoftext|>"
HEADING = re.compile(r"^(?:chapter|volume) +(?:[ivxlc]+|\d+)\.?$", re.IGNORECASE | re.MULTILINE)
CLOSING = re.compile(r"^(?:finis|the end)\.?$", re.IGNORECASE | re.MULTILINE)
PLAIN = str.maketrans("“”‘’", "\"\"''", "_")  # underscores mark italics

VOCAB_SIZE, CONTEXT, WIDTH, LAYERS, HEADS = 2048, 256, 128, 4, 4
BATCH, PEAK_RATE, WARMUP, WEIGHT_DECAY, CLIP = 8, 4e-3, 100, 0.1, 1.0
HELD_OUT_EVERY = 20  # chapters
LOG_EVERY = 100  # steps
PARAGRAPHS = 50  # of a piece of a book without chapter headings
PROMPTS = ("My name is Lewis and I like to", "It was a fine morning, and", "She looked at him, and said")


def read_r_character_vectors(database: bytes) -> list[list[str]]:
    r"""Read the strings of every character vector in an R "lazy load" database.

    The file is a row of chunks: a 4-byte big-endian size, then a zlib stream of one object in R's binary serialization
    format 3 ("R Internals", section 1.8): `X\n`, three ints, the length and name of the encoding, then for a character
    vector the int 16, the count, and per string an int of flags, its length (-1: missing) and its bytes.
    """
    vectors: list[list[str]] = []
    offset = 0
    while offset < len(database):
        stream = zlib.decompressobj()
        chunk = stream.decompress(database[offset + 4 :])
        offset = len(database) - len(stream.unused_data)
        position = 26 + struct.unpack_from(">i", chunk, 14)[0]
        kind, count = struct.unpack_from(">2i", chunk, position - 8)
        if not chunk.startswith(b"X\n") or kind != 16:
            raise ValueError(f"expected a serialized R character vector (kind 16), found kind {kind}")
        vectors.append([])
        for _ in range(count):
            size = max(struct.unpack_from(">2i", chunk, position)[1], 0)
            vectors[-1].append(chunk[position + 8 : position + 8 + size].decode("utf-8"))
            position += 8 + size
    return vectors


def debian_novels() -> list[list[str]]:
    """Fetch the novels' package into a temporary folder and return the lines of each novel."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for command in (["apt-get", "download", DEBIAN_PACKAGE], ["sh", "-c", "dpkg-deb -x *.deb ."]):
                subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            return read_r_character_vectors((Path(folder) / DEBIAN_DATA_FILE).read_bytes())
        except (OSError, subprocess.CalledProcessError) as error:
            found = getattr(error, "stderr", error)
            hint = "Run `apt-get update` as root first, or give your own text with --text FILE..."
            raise SystemExit(f"expected the package {DEBIAN_PACKAGE} from apt, found: {found}\n{hint}") from error


def chapters(lines: list[str]) -> list[str]:
    """Split one book into chapters of one line per paragraph, without title page, headings and marks of italics."""
    text = CLOSING.sub("", "\n".join(line.strip() for line in lines).translate(PLAIN))
    pieces = [re.split(r"\n{2,}", piece) for piece in HEADING.split(text)]
    whole = pieces[0]  # all of a book without headings, else its title page
    pieces = pieces[1:] or [whole[start : start + PARAGRAPHS] for start in range(0, len(whole), PARAGRAPHS)]
    texts = ["\n".join(" ".join(block.split()) for block in piece if block.strip()) for piece in pieces]
    return [text for text in texts if text]


def train_bpe(texts: list[str], special_tokens: list[str]) -> Tokenizer:
    """Train a byte-level BPE of `VOCAB_SIZE` pieces; the special tokens have the first ids."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def train_tokenizer(texts: list[str]) -> GPT2Tokenizer:
    """Train a tokenizer whose `<|endoftext|>` has id 0 and serves as bos, eos and padding."""
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    return GPT2Tokenizer(tokenizer_object=train_bpe(texts, [END_OF_TEXT]), model_max_length=CONTEXT, **special)


def encode(tokenizer: GPT2Tokenizer, texts: list[str]) -> torch.Tensor:
    """Join the texts' ids, each text closed by `<|endoftext|>`, as int64 [tokens]."""
    return torch.tensor(tokenizer("".join(text + END_OF_TEXT for text in texts), verbose=False)["input_ids"])


def new_model(eos: int) -> GPT2LMHeadModel:
    """Build the untrained model; while it trains its GELU is torch's fused kernel of the same tanh formula."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,  # so small a model needs no dropout
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return GPT2LMHeadModel(config)


def loss_of(model: GPT2LMHeadModel, windows: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Next-token cross entropy in nats of int64 windows [B, L + 1], as a float32 scalar."""
    logits = model(windows[:, :-1], use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


def validation(model: GPT2LMHeadModel, ids: torch.Tensor, size: int) -> tuple[float, float]:
    """Return nats per token and nats per byte over held-out ids [tokens] of `size` bytes, every token but one."""
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, CONTEXT):
            nats += float(loss_of(model, ids[None, start : start + CONTEXT + 1], "sum"))
    return nats / (len(ids) - 1), nats / size


def batches(ids: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield int64 windows [BATCH, CONTEXT + 1] for ever; an epoch shuffles all windows from a new random offset."""
    while True:
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        starts = torch.arange(offset, len(ids) - CONTEXT, CONTEXT)
        for row in starts[torch.randperm(len(starts), generator=generator)].split(BATCH):
            if len(row) == BATCH:
                yield ids[row[:, None] + torch.arange(CONTEXT + 1)]


def train(
    model: PreTrainedModel,
    batches: Iterable[Any],
    steps: int,
    loss_of: Callable[[Any, Any], torch.Tensor] = loss_of,
    peak_rate: float = PEAK_RATE,
) -> None:
    """Run `steps` of AdamW: linear warm-up, cosine decay to a fiftieth, weight decay on matrices only."""
    matrices = {"params": [weight for weight in model.parameters() if weight.ndim > 1], "weight_decay": WEIGHT_DECAY}
    vectors = {"params": [weight for weight in model.parameters() if weight.ndim == 1], "weight_decay": 0.0}
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
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        for name, options in (("greedy", {"do_sample": False}), ("top-5", {"do_sample": True, "top_k": 5})):
            torch.manual_seed(seed)
            ids = model.generate(**inputs, max_new_tokens=100, **options)
            print(f"--- {name}\n{tokenizer.decode(ids[0], skip_special_tokens=True)}")


def parse_options(description: str, output: Path, steps: int) -> argparse.Namespace:
    """Read the command line, which is the same for every model, and prepare torch and the log."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=output, help="folder to write")
    parser.add_argument("--steps", type=int, default=steps, help=f"optimizer steps (default: {steps})")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and samples (default: 0)")
    parser.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="UTF-8 text files instead of the novels")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    return options


def read_texts(files: list[Path] | None) -> tuple[list[str], list[str]]:
    """Return the chapters to train on and the held-out ones, of the given files or of the novels."""
    books = [path.read_text("utf-8").splitlines() for path in files] if files else debian_novels()
    texts = [chapter for book in books for chapter in chapters(book)]
    held_out = texts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    kept = [text for index, text in enumerate(texts, 1) if index % HELD_OUT_EVERY]
    if len(kept) < HELD_OUT_EVERY - 1 or sum(len(text.encode()) for text in held_out) < BATCH * CONTEXT:
        raise SystemExit(f"expected {HELD_OUT_EVERY} chapters (or {PARAGRAPHS} paragraphs as one), found {len(texts)}")
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    logger.info("text %s: %d chapters, %d of them held out", digest, len(texts), len(held_out))
    return kept, held_out


def main() -> None:
    """Train, save, and report losses and samples of the saved checkpoint."""
    output = Path(__file__).resolve().parent / "tiny"
    options = parse_options("Train a small GPT-2 and save it as an fp16 checkpoint.", output, steps=4000)
    kept, held_out = read_texts(options.text)
    tokenizer = train_tokenizer(kept)
    ids, validation_ids = encode(tokenizer, kept), encode(tokenizer, held_out)
    model = new_model(tokenizer.eos_token_id)
    logger.info("%d + %d tokens; %d parameters", len(ids), len(validation_ids), model.num_parameters())
    train(model, batches(ids, torch.Generator().manual_seed(options.seed)), options.steps)
    model.config.activation_function = "gelu_new"
    save(model, tokenizer, options.output)

    saved = GPT2LMHeadModel.from_pretrained(options.output).float()
    size = sum(len(text.encode()) for text in held_out)
    per_token, per_byte = validation(saved, validation_ids, size)
    print(f"validation: {per_token:.4f} nats/token, {per_byte:.4f} nats/byte")
    show_samples(options.output, options.seed)


if __name__ == "__main__":
    main()
