# SPDX-License-Identifier: Apache-2.0
"""Train the small GPT-2 of `examples/gpt2/tiny` on Jane Austen's novels.

The checkpoint lets the GPT-2 example write English on a machine without a network. It has GPT-2's architecture and
Hugging Face's layout, fewer than two million parameters, and is saved in fp16.

    python examples/gpt2/train_tiny.py                          # writes examples/gpt2/tiny, minutes on two cores
    python examples/gpt2/train_tiny.py --text a.txt b.txt --output /tmp/mine --steps 500

Text: the six completed novels of Jane Austen (died 1817; public domain), 4.0 MB, from the Debian and Ubuntu package
`r-cran-janeaustenr` (the package's own code: MIT). `apt-get download` fetches it into a temporary folder; nothing is
installed and no root is needed, but apt must know its package lists (`apt-get update`). `--text` takes UTF-8 files
instead. Every twentieth chapter is held out for the validation loss.

Reproducible: initialisation, batches and samples follow `--seed`. On one machine, with the same torch build and thread
count, two runs write the same bytes; elsewhere the order of floating-point sums differs and losses agree to about 0.01.

Needs torch and transformers (`requirements-test.txt`). The training loop is plain AdamW with a cosine schedule.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

logger = logging.getLogger("poptransformer.train_tiny")

DEBIAN_PACKAGE = "r-cran-janeaustenr"
DEBIAN_DATA_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
END_OF_TEXT = "<|endoftext|>"
HEADING = re.compile(r"^(chapter|volume)\s+([ivxlc]+|\d+)\.?$", re.IGNORECASE)
CLOSING = re.compile(r"^(finis|the end)\.?$", re.IGNORECASE)

VOCAB_SIZE, CONTEXT, WIDTH, LAYERS, HEADS = 2048, 256, 160, 5, 4
BATCH, PEAK_RATE, WARMUP, WEIGHT_DECAY, CLIP = 16, 4e-3, 100, 0.1, 1.0
HELD_OUT_EVERY = 20
PROMPTS = ("My name is Lewis and I like to", "It was a fine morning, and", "She looked at him, and said")


def read_r_character_vectors(database: bytes) -> list[list[str]]:
    """Read the character vectors of an R "lazy load" database.

    The file is a row of chunks: a 4-byte big-endian size, then a zlib stream. A chunk is an object in R's binary
    serialization format 3 ("R Internals", section 1.8): `X\\n`, three ints, the native encoding's name with its
    length, then for a character vector the int 16, the count, and per string an int of flags, its length, its bytes.

    Raises:
        ValueError: The bytes are something else.
    """
    vectors, offset = [], 0
    while offset < len(database):
        stream = zlib.decompressobj()
        chunk = stream.decompress(database[offset + 4 :])
        offset = len(database) - len(stream.unused_data)
        position = 18 + struct.unpack_from(">i", chunk, 14)[0]
        kind, count = struct.unpack_from(">2i", chunk, position)
        if not chunk.startswith(b"X\n") or kind != 16:
            raise ValueError(f"expected a serialized R character vector (kind 16), found kind {kind}")
        position += 8
        strings = []
        for _ in range(count):
            size = max(struct.unpack_from(">2i", chunk, position)[1], 0)  # -1 marks NA
            strings.append(chunk[position + 8 : position + 8 + size].decode("utf-8"))
            position += 8 + size
        vectors.append(strings)
    return vectors


def debian_novels() -> list[list[str]]:
    """Fetch the novels' package into a temporary folder and return the lines of each novel.

    Raises:
        RuntimeError: apt could not deliver the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetch = ["apt-get", "download", "--quiet", DEBIAN_PACKAGE]
            subprocess.run(fetch, cwd=folder, check=True, capture_output=True, text=True)
            archive = next(Path(folder).glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True, capture_output=True, text=True)
            return read_r_character_vectors((Path(folder) / DEBIAN_DATA_FILE).read_bytes())
        except (OSError, StopIteration, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or error
            raise RuntimeError(
                f"expected the package {DEBIAN_PACKAGE} from apt, found: {detail}\n"
                "Run `apt-get update` as root first, or give your own text with --text FILE..."
            ) from error


def chapters(lines: list[str]) -> list[str]:
    """Split one book into chapters of one line per paragraph; a book without headings is one chapter.

    Title pages, headings and italics marks (`_so_`) go; curly quotes become straight ones.
    """
    lines = [line.strip().replace("_", "").translate(str.maketrans("“”‘’", "\"\"''")) for line in lines]
    starts = [index for index, line in enumerate(lines) if HEADING.match(line)] or [-1]
    texts = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        body = "\n".join(line for line in lines[start + 1 : end] if not CLOSING.match(line))
        paragraphs = [" ".join(block.split()) for block in re.split(r"\n{2,}", body)]
        texts.append("\n".join(paragraph for paragraph in paragraphs if paragraph))
    return [text for text in texts if text]


def train_tokenizer(texts: list[str]) -> GPT2TokenizerFast:
    """Train a byte-level BPE of `VOCAB_SIZE` pieces; `<|endoftext|>` has id 0 and serves as bos, eos and padding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    special = {name: END_OF_TEXT for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return GPT2TokenizerFast(tokenizer_object=bpe, model_max_length=CONTEXT, **special)


def encode(tokenizer: GPT2TokenizerFast, texts: list[str]) -> torch.Tensor:
    """Join the texts' ids, each text closed by `<|endoftext|>`, as int64 [tokens]."""
    rows = tokenizer(texts, verbose=False)["input_ids"]
    return torch.tensor([token for row in rows for token in [*row, tokenizer.eos_token_id]])


def new_model(eos: int) -> GPT2LMHeadModel:
    """Build the untrained model; during training its GELU is torch's fused form of the same tanh formula."""
    shape = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # a few epochs: nothing to regularise
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
        activation_function="gelu_pytorch_tanh",
        **shape,
        **dropout,
    )
    return GPT2LMHeadModel(config)


def loss_of(model: GPT2LMHeadModel, windows: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Next-token cross entropy in nats of int64 windows [B, L + 1], as a float32 scalar."""
    logits = model(windows[:, :-1], use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


def validation(model: GPT2LMHeadModel, ids: torch.Tensor, size: int) -> tuple[float, float]:
    """Return nats per token and nats per byte over held-out ids [tokens] of `size` bytes, every token but one."""
    model.eval()
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, CONTEXT):
            nats += float(loss_of(model, ids[None, start : start + CONTEXT + 1], "sum"))
    model.train()
    return nats / (len(ids) - 1), nats / size


def batches(ids: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield int64 windows [BATCH, CONTEXT + 1] for ever; an epoch shuffles all windows from a new random offset."""
    while True:
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        starts = torch.arange(offset, len(ids) - CONTEXT, CONTEXT)
        for row in starts[torch.randperm(len(starts), generator=generator)].split(BATCH):
            if len(row) == BATCH:
                yield ids[row[:, None] + torch.arange(CONTEXT + 1)]


def train(model: GPT2LMHeadModel, ids: torch.Tensor, steps: int, seed: int) -> None:
    """Run `steps` of AdamW: linear warm-up, cosine decay to a fiftieth, weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    warmup = min(WARMUP, steps // 10 + 1)

    def rate(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * max(step - warmup, 0) / max(steps - warmup, 1))
        return min((step + 1) / warmup, 0.02 + 0.98 * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    began, total = time.monotonic(), 0.0
    stream = batches(ids, torch.Generator().manual_seed(seed))
    for step in range(1, steps + 1):
        loss = loss_of(model, next(stream))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if step % 50 == 0 or step == steps:
            mean, total = total / (step % 50 or 50), 0.0
            logger.info("step %5d/%d  loss %.4f nats/token  %.0f s", step, steps, mean, time.monotonic() - began)


def save(model: GPT2LMHeadModel, tokenizer: GPT2TokenizerFast, output: Path) -> None:
    """Write the fp16 checkpoint to a new folder beside `output`, then swap the two; other files there are kept."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        if output.exists():
            shutil.copytree(output, staging, dirs_exist_ok=True)
        model.config.activation_function = "gelu_new"
        model.half().save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        staging.chmod(0o755)
        retired = staging.with_name(staging.name + ".old")
        if output.exists():
            os.rename(output, retired)
        os.rename(staging, output)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def show_samples(folder: Path, seed: int) -> None:
    """Print greedy and top-5 continuations of `PROMPTS` by the checkpoint as a user would load it."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        for name, options in (("greedy", {"do_sample": False}), ("top-5", {"do_sample": True, "top_k": 5})):
            torch.manual_seed(seed)
            ids = model.generate(**inputs, max_new_tokens=100, **options)
            print(f"--- {name}\n{tokenizer.decode(ids[0], skip_special_tokens=True)}")


def main() -> None:
    """Train, save, and report losses and samples of the saved checkpoint."""
    parser = argparse.ArgumentParser(description="Train a small GPT-2 and save it as an fp16 checkpoint.")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "tiny", help="folder to write")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of 4096 tokens (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and samples (default: 0)")
    parser.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="UTF-8 text files instead of the novels")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)

    books = debian_novels()
    if options.text:
        books = [path.read_text("utf-8").splitlines() for path in options.text]
    texts = [chapter for book in books for chapter in chapters(book)]
