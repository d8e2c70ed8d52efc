# SPDX-License-Identifier: Apache-2.0
"""What a configuration may hold: every key with its meaning, its default and the values it accepts.

These dataclasses are the one list of keys: the base configuration of the examples is made from their
defaults, and composed configurations are checked against them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from poptransformer.recipe import PRECISION_RULE, QuantizationConfig
from poptransformer.rules import (
    COUNTS,
    FLAG,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_FRACTION,
    TEXT,
    TEXT_LIST,
    TEXTS,
    choice,
    integer,
    or_auto,
    or_null,
)
from poptransformer.section import Section, check_keys, full_key, group, is_private, setting

__all__ = [
    "GlobalArgs",
    "InputsConfig",
    "ModelConfig",
    "PlanConfig",
    "QuantizationConfig",
    "Section",
    "SessionConfig",
    "TopLevel",
    "base_config",
    "check_keys",
    "full_key",
    "is_private",
]

LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "off")
POPART_LOG_LEVELS = ("trace", "debug", "info", "warn", "err", "critical", "off")
OUTLINE_BLOCKS = ("single_block", "multi_block")
DISTRIBUTED = ("threads", "mpi")
HF_MODEL_CLASSES = ("auto_model", "auto_model_for_causallm")


@dataclasses.dataclass(frozen=True)
class TopLevel(Section):
    """The keys beside the groups `global_args`, `session`, `model` and `inputs`.

    Attributes:
        log_level: least severe messages of this package that are shown; `info` lists every tensor and block.
        popart_log_level: the same for the runtime; the name is PopART's, the runtime is onnxruntime.
        stream: print the text as it is generated; false generates it in one call, then prints it.
        validate_only: check the graph from the shapes of its weights, and run nothing.
        compile_only: write the compiled model to `compile_dir`, and run nothing.
        compile_dir: folder of the compiled model.
    """

    log_level: str = setting("warning", choice(*LOG_LEVELS))
    popart_log_level: str = setting("err", choice(*POPART_LOG_LEVELS))
    stream: bool = setting(True, FLAG)
    validate_only: bool = setting(False, FLAG)
    compile_only: bool = setting(False, FLAG)
    compile_dir: str | None = setting(None, or_null(TEXT))


@dataclasses.dataclass(frozen=True)
class GlobalArgs(Section):
    """What holds for the whole build.

    Attributes:
        num_replicas: tensor-parallel replicas that each weight is divided among; `auto` asks the planner.
        batch_size: rows (prompts) of one batch.
        batch_per_step: batches that one call of `session.run` takes.
        model_type: `shard` (each layer on one IPU) or `tp` (tensor parallel).
        enable_pipeline: let the stages of `layer_per_ipu` work on several batches at a time.
        precision: how the weights of matrix products are stored, such as `int4`; or a recipe, from patterns of
            names to precisions, of which the first that matches counts.
        quantization: the details of `int8`, `int4`, `fp8` and `fp8_weight`.
    """

    NAME: ClassVar[str] = "global_args"

    num_replicas: int | str = setting(1, or_auto(integer(1)))
    batch_size: int = setting(1, integer(1))
    batch_per_step: int = setting(1, integer(1))
    model_type: str = setting("shard", TEXT)
    enable_pipeline: bool = setting(False, FLAG)
    precision: str | Mapping[str, Any] = setting("fp16", PRECISION_RULE)
    quantization: QuantizationConfig = group(QuantizationConfig)


@dataclasses.dataclass(frozen=True)
class SessionConfig(Section):
    """How the model is compiled and run.

    The first five steer PopART's compiler. They are kept for the IPU's cost model and change no result here.

    Attributes:
        disable_outlining: do not share code between equal blocks.
        unstable_softmax: softmax without subtracting the maximum.
        disable_matmul_multi_stage_reduce: sum partial products in one stage.
        constant_folding_of_multiple_consumers: fold constants that several nodes read.
        use_loop_candidate_creator: lay out loop variables as their consumers want them.
        execution_cache_name: folder of compiled models that later runs use again; null compiles every time.
        profile_name: folder that a profile of the run is written to; null writes none.
        threads: CPU threads; null is one for each core that this process may use.
        fuse: compute several nodes of the graph by one kernel; false runs the graph as the layers wrote it.
        distributed: what the ranks of a model of several replicas or stages are: `threads` of this process, or `mpi`,
            one process each, started by mpiexec.
        timeout_s: seconds that a rank waits for another one before all end with an error.
    """

    NAME: ClassVar[str] = "session"

    disable_outlining: bool = setting(False, FLAG)
    unstable_softmax: bool = setting(False, FLAG)
    disable_matmul_multi_stage_reduce: bool = setting(False, FLAG)
    constant_folding_of_multiple_consumers: bool = setting(True, FLAG)
    use_loop_candidate_creator: bool = setting(False, FLAG)
    execution_cache_name: str | None = setting(None, or_null(TEXT))
    profile_name: str | None = setting(None, or_null(TEXT))
    threads: int | None = setting(None, or_null(integer(1)))
    fuse: bool = setting(True, FLAG)
    distributed: str = setting("threads", choice(*DISTRIBUTED))
    timeout_s: float = setting(300.0, POSITIVE)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """Keys that every model takes; a model class may take more, as parameters of its constructor.

    Attributes:
        hf_model_name: hub name, folder, `.gguf` file or `package://<package>/<file>`.
        hf_cache_dir: folder of hub downloads; null is the hub library's own.
        hf_model_class_name: `auto_model` or `auto_model_for_causallm`.
        override_hfconfig_from_json: a config.json to build with seeded random weights, in place of a
            checkpoint's.
        max_length: tokens of prompt and answer together; null is what the checkpoint was trained for.
        layer_per_ipu: decoder blocks on each IPU in order, adding up to the model's; null puts all on one, `auto`
            asks the planner.
        max_loop: most tokens to generate for a prompt; null goes on to `max_length`.
        topk: 1 takes the likeliest token, k > 1 draws among the k likeliest, 0 among all; null is 1, or 0
            where `temperature`, `top_p` or `min_p` ask for draws.
        temperature: what the logits are divided by before a draw.
        top_p: draw among the likeliest tokens that together have this probability.
        min_p: leave out tokens less than `min_p` times as likely as the likeliest.
        repetition_penalty: above 1, tokens that occurred already become less likely.
        seed: seed of the draws, 0 to 2^63 - 1; null takes another one each time.
        num_beams: beams of a beam search; 1 is no beam search.
        stop: texts that end an answer.
        early_stop: end a row at the checkpoint's end-of-text token; false goes on to `max_loop` tokens.
        outline_blocks: which blocks share compiled code: `single_block`, `multi_block` or null.
        num_embedding_partitions: pieces that the embedding table may be cut into.
        fp8_cache: keep keys and values in 8 bits, as E4M3FN: half of what fp16 takes, a quarter of fp32.
        anchor_return_type: PopART's anchor return type; here `ALL`.
    """

    NAME: ClassVar[str] = "model"

    hf_model_name: str | None = setting(None, or_null(TEXT))
    hf_cache_dir: str | None = setting(None, or_null(TEXT))
    hf_model_class_name: str = setting("auto_model_for_causallm", choice(*HF_MODEL_CLASSES))
    override_hfconfig_from_json: str | None = setting(None, or_null(TEXT))
    max_length: int | None = setting(None, or_null(integer(1)))
    layer_per_ipu: Sequence[int] | str | None = setting(None, or_auto(or_null(COUNTS)))
    max_loop: int | None = setting(None, or_null(integer(1)))
    topk: int | None = setting(None, or_null(integer(0)))
    temperature: float = setting(1.0, NOT_NEGATIVE)
    top_p: float = setting(1.0, POSITIVE_FRACTION)
    min_p: float = setting(0.0, FRACTION)
    repetition_penalty: float = setting(1.0, POSITIVE)
    seed: int | None = setting(None, or_null(integer(0, 2**63 - 1)))
    num_beams: int = setting(1, integer(1))
    stop: Sequence[str] | str = setting((), TEXTS)
    early_stop: bool = setting(False, FLAG)
    outline_blocks: str | None = setting(None, or_null(choice(*OUTLINE_BLOCKS)))
    num_embedding_partitions: int = setting(1, integer(1))
    fp8_cache: bool = setting(False, FLAG)
    anchor_return_type: str = setting("ALL", TEXT)


@dataclasses.dataclass(frozen=True)
class InputsConfig(Section):
    """What the models here read; a model with inputs of its own names them in its `build_input_dict`.

    Attributes:
        input_string_list: the prompts, one a row.
        chat: wrap each prompt as a user's message by the checkpoint's chat template.
        input_string: what is said to a chat model; of several texts, each is said when the one before is answered.
        use_history: go on with the conversation so far.
    """

    NAME: ClassVar[str] = "inputs"

    input_string_list: Sequence[str] = setting((), TEXT_LIST)
    chat: bool = setting(False, FLAG)
    input_string: str | Sequence[str] | None = setting(None, or_null(TEXTS))
    use_history: bool = setting(False, FLAG)


@dataclasses.dataclass(frozen=True)
class PlanConfig(Section):
    """What the planner looks for; read by `python -m poptransformer.plan` and where a key is `auto`.

    Attributes:
        objective: `latency` of a token, `throughput` of a pipeline, or the fewest `ipus`.
        prompt_length: tokens of a prompt, computed in one step; null is 128, or half of `max_length` if that is less.
        attention: slots that attention reads for a token: those in use half way through the answer (`current`), or
            all (`max_length`), as the original did.
        max_ipus: most IPUs that may be reserved; null is what the device can link.
        folder: where the command writes its files, below the run's folder.
        pictures: draw them.
        sweep: cost other precisions and lengths too, for the what-if picture.
    """

    NAME: ClassVar[str] = "plan"

    objective: str = setting("latency", choice("latency", "throughput", "ipus"))
    prompt_length: int | None = setting(None, or_null(integer(1)))
    attention: str = setting("current", choice("current", "max_length"))
    max_ipus: int | None = setting(None, or_null(integer(1)))
    folder: str = setting("plan", TEXT)
    pictures: bool = setting(True, FLAG)
    sweep: bool = setting(True, FLAG)


def base_config() -> dict[str, Any]:
    """Returns every key with its default; `inputs` is empty, as each model reads its own."""
    session = {"_target_": "poptransformer.sessions.Session", **SessionConfig.defaults()}
    return {
        **TopLevel.defaults(),
        "global_args": GlobalArgs.defaults(),
        "session": session,
        "model": ModelConfig.defaults(),
        "inputs": {},
        "plan": PlanConfig.defaults(),
    }
