# SPDX-License-Identifier: Apache-2.0
"""Adapters: one module per inference engine, run in processes of their own by `bench.engines.worker`.

A module has one function, `load(job)`, that returns an object with

    generate(ids, count, texts=None) -> (times, tokens)
        Greedily generates `count` tokens for every row of `ids` (lists of equal length), whatever they are.
        times: `time.perf_counter()` when each token was there, the first included; tokens: ids of the first row.
        `texts` are the same prompts as text, for an engine whose tokenizer belongs to what is measured.
    weight_bytes() -> int
        Bytes of weights that one decode step has to read in this engine's own format.
    version() -> str

The module imports its engine and the standard library only: it runs where neither our package nor its requirements
are installed.
"""
