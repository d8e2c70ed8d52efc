# SPDX-License-Identifier: Apache-2.0
"""Train the small ChatGLM of `examples/chatglm/tiny`, which lets the ChatGLM example write English without a network.

    python examples/chatglm/train_tiny.py                # writes examples/chatglm/tiny: 1.1 million parameters in fp16
    python examples/chatglm/train_tiny.py --text a.txt b.txt --output /tmp/mine --steps 500

Text and options: see `examples/tiny_training.py`. The model is the PyTorch reference of our tests. It learns
what GLM calls generation with [gMASK]: a context whose tokens see each other both ways, `[gMASK] <sop>`, and the
continuation, of which alone the loss is taken. Three quarters of a batch are pieces of the novels, cut in two; the
others are dialogues from them in the format of ChatGLM's chat: a speech asks, and the one that follows it answers.

Reproducible as the others are: on one machine, with the same torch build, two runs write the same bytes.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import processors
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what the examples share

from tiny_training import BATCH, parse_options, read_texts, save, train, train_bpe

from poptransformer.checkpoint.chatglm_tokenizer import CHAT_TEMPLATE
from tests.parity.chatglm_reference import ChatGLMReference, ChatGLMReferenceConfig

logger = logging.getLogger("poptransformer.train_tiny")

SPECIAL_TOKENS = ["<pad>", "<unk>", "[MASK]", "[gMASK]", "<sop>", "<eop>"]
PAD, UNK, MASK, GMASK, SOP, EOP = range(len(SPECIAL_TOKENS))
VOCAB_SIZE, CONTEXT, WIDTH, LAYERS, HEADS = 2048, 256, 128, 4, 4
PEAK_RATE = 3e-3
SHORTEST, LONGEST = 4, 96  # tokens of a context cut from a piece of a novel
HELD_OUT_CONTEXT = 32
SPEECH = re.compile(r'"([^"]+)"')
LONGEST_SPEECH = 300  # characters
CHATS_PER_BATCH = 2
PROMPTS = ("My name is Lewis and I like to", "It was a fine morning, and", "How do you do, my dear Miss Woodhouse?")


@dataclass
class Batch:
    """Rows of contexts and continuations, right-padded: ids and targets int64 [B, L]; a target of -100 has no loss."""

    ids: torch.Tensor
    targets: torch.Tensor


def train_tokenizer(texts: list[str], conversations: list[list[str]]) -> PreTrainedTokenizerFast:
    """Train a tokenizer that ends each text with `[gMASK] <sop>`; it knows the chat format's words from examples."""
    bpe = train_bpe([*texts, *map("\n".join, conversations)], VOCAB_SIZE, SPECIAL_TOKENS)
    special = [(name, SPECIAL_TOKENS.index(name)) for name in ("[gMASK]", "<sop>")]
    bpe.post_processor = processors.TemplateProcessing(single="$A [gMASK] <sop>", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=CONTEXT,
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="[MASK]",
        bos_token="<sop>",
        eos_token="<eop>",
        additional_special_tokens=["[gMASK]"],
        chat_template=CHAT_TEMPLATE,
    )


def dialogues(texts: list[str]) -> list[list[str]]:
    """Return runs of two or more speeches from paragraphs that follow each other, without their "said he"."""
    runs: list[list[str]] = []
    for text in texts:
        runs.append([])
        for paragraph in text.split("\n"):
            speech = " ".join(SPEECH.findall(paragraph))
            if paragraph.startswith('"') and 0 < len(speech) <= LONGEST_SPEECH:
                runs[-1].append(speech)
            else:
                runs.append([])
    return [run for run in runs if len(run) > 1]


def as_chat(speeches: list[str]) -> tuple[str, str]:
    """Put an even number of speeches into the chat format: what the model is asked, and its answer."""
    *asked, answer = speeches
    if len(asked) == 1:
        return asked[0], answer
    rounds = [f"[Round {i // 2}]\n问：{asked[i]}\n答：" for i in range(0, len(asked), 2)]
    answers = [f"{text}\n" for text in asked[1::2]]
    return "".join(a + b for a, b in zip(rounds, [*answers, ""], strict=True)), answer


def new_model() -> ChatGLMReference:
    """Build the untrained model."""
    config = ChatGLMReferenceConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        inner_hidden_size=4 * WIDTH,
        max_sequence_length=CONTEXT,
        mask_token_id=MASK,
        gmask_token_id=GMASK,
        bos_token_id=SOP,
        eos_token_id=EOP,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    model = ChatGLMReference(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.02)
    return model


def row_of(context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
    """Return ids and targets of one row: `<sop>` predicts the first token of the continuation."""
    ids = [*context, GMASK, SOP, *continuation[:-1]]
    return ids, [-100] * (len(context) + 1) + continuation


def batch_of(rows: list[tuple[list[int], list[int]]]) -> Batch:
    """Pad rows to the longest."""
    length = max(len(ids) for ids, _ in rows)
    ids = [row + [PAD] * (length - len(row)) for row, _ in rows]
    targets = [row + [-100] * (length - len(row)) for _, row in rows]
    return Batch(torch.tensor(ids), torch.tensor(targets))


def pieces(ids: list[int], generator: torch.Generator) -> Iterator[tuple[list[int], list[int]]]:
    """Yield rows cut from a text for ever, all of one length; an epoch has a new order and a new random offset."""
    size = CONTEXT - 1  # and [gMASK] and <sop>, less the last token, which nothing follows
    while True:
        offset = int(torch.randint(size, (1,), generator=generator))
        starts = torch.arange(offset, len(ids) - size, size)
        for start in starts[torch.randperm(len(starts), generator=generator)].tolist():
            cut = start + int(torch.randint(SHORTEST, LONGEST + 1, (1,), generator=generator))
            yield row_of(ids[start:cut], ids[cut : start + size])


def chats(
    runs: list[list[str]], tokenizer: PreTrainedTokenizerBase, generator: torch.Generator
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield rows of one to four questions and answers for ever."""
    while True:
        for index in torch.randperm(len(runs), generator=generator).tolist():
            speeches = runs[index]
            rounds = 1 + int(torch.randint(min(4, len(speeches) // 2), (1,), generator=generator))
            first = int(torch.randint(len(speeches) - 2 * rounds + 1, (1,), generator=generator))
            asked, answer = as_chat(speeches[first : first + 2 * rounds])
            context, continuation = encode(tokenizer, asked), [*encode(tokenizer, answer), EOP]
            if len(context) + len(continuation) < CONTEXT:
                yield row_of(context, continuation)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a text's ids and nothing around them."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def batches(ids: list[int], runs: list[list[str]], tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Batch]:
    """Yield batches for ever, pieces and chats."""
    generator = torch.Generator().manual_seed(seed)
    from_text, from_speech = pieces(ids, generator), chats(runs, tokenizer, generator)
    while True:
        sources = [from_speech] * CHATS_PER_BATCH + [from_text] * (BATCH - CHATS_PER_BATCH)
        yield batch_of([next(source) for source in sources])


def loss_of(model: ChatGLMReference, batch: Batch, reduction: str = "mean") -> torch.Tensor:
    """Cross entropy in nats over the tokens of the continuations, as a float32 scalar."""
    logits = model(batch.ids).logits.float()
    return functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction=reduction)


def validation(model: ChatGLMReference, rows: list[tuple[list[int], list[int]]]) -> float:
    """Return nats per token of the continuations."""
    nats, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            batch = batch_of(rows[start : start + BATCH])
            nats += float(loss_of(model, batch, "sum"))
            count += int((batch.targets >= 0).sum())
    return nats / count


def held_out_rows(
    held_out: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[list[int], list[int]]], list[tuple[list[int], list[int]]]]:
    """Return every piece of the held-out chapters, each after a context of 32 tokens, and every pair of speeches."""
    ids = encode(tokenizer, "\n".join(held_out))
    cuts = range(0, len(ids) - CONTEXT, CONTEXT - 1)
    from_text = [row_of(ids[i : i + HELD_OUT_CONTEXT], ids[i + HELD_OUT_CONTEXT : i + CONTEXT - 1]) for i in cuts]
    pairs = [run[i : i + 2] for run in dialogues(held_out) for i in range(len(run) - 1)]
    from_speech = [row_of(encode(tokenizer, a), [*encode(tokenizer, b), EOP]) for a, b in pairs]
    return from_text, from_speech


def show_samples(folder: Path, seed: int) -> None:
    """Print greedy and top-5 continuations of `PROMPTS` by the checkpoint as it was saved."""
    model = ChatGLMReference.from_pretrained(folder).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        ids = torch.tensor([[*encode(tokenizer, prompt), GMASK, SOP]])
        for name, options in (("greedy", {"do_sample": False}), ("top-5", {"do_sample": True, "top_k": 5})):
            torch.manual_seed(seed)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, **options)
            print(f"--- {name}: {prompt}\n{tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)}")


def main() -> None:
    """Train, save, and report losses and samples of the saved checkpoint."""
    output = Path(__file__).resolve().parent / "tiny"
    options = parse_options("Train a small ChatGLM and save it as an fp16 checkpoint.", output, steps=3000, threads=1)
    kept, held_out = read_texts(options.text, BATCH * CONTEXT)
    runs = dialogues(kept)
    tokenizer = train_tokenizer(kept, [[*as_chat(run[: len(run) // 2 * 2])] for run in runs])
    ids = encode(tokenizer, "\n".join(kept))
    model = new_model()
    logger.info("%d tokens, %d dialogues; %d parameters", len(ids), len(runs), model.num_parameters())
    train(model, batches(ids, runs, tokenizer, options.seed), options.steps, PEAK_RATE, loss_of)
    save(model, tokenizer, options.output)

    saved = ChatGLMReference.from_pretrained(options.output).float().eval()
    from_text, from_speech = held_out_rows(held_out, tokenizer)
    for name, rows in (("novels", from_text), ("answers", from_speech)):
        print(f"validation, {name}: {validation(saved, rows):.4f} nats/token ({len(rows)} rows)")
    show_samples(options.output, options.seed)


if __name__ == "__main__":
    main()
