# SPDX-License-Identifier: Apache-2.0
"""Plan a model for emulated IPUs: no weights, no network, no hardware.

    python -m poptransformer.plan --config-dir examples/llama2/conf --config-name sharding device=c600

Takes every key of an example's configuration, and those of the group `plan`. Prints tables and an explanation, and
writes `plan.json`, `planned.yaml` (which runs with `--config-dir`) and pictures into `plan.folder`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from poptransformer.checkpoint.files import write_text
from poptransformer.errors import ConfigError
from poptransformer.ipu.checks import problems, warnings, weights_note
from poptransformer.ipu.explain import describe, explain, footer, milliseconds
from poptransformer.ipu.export import report_json
from poptransformer.ipu.plan import Plan
from poptransformer.ipu.tables import front_table, op_table, plan_table, stage_table
from poptransformer.planning import Planned, global_args_of, model_of, plan_config, score_config, sweep
from poptransformer.rules import AUTO
from poptransformer.utils.automatic import with_device_formats
from poptransformer.utils.hydra_app import hydra_main
from poptransformer.utils.logging import set_up_logging
from poptransformer.utils.prepare import CheckedConfig, check_config

logger = logging.getLogger(__name__)
YAML_NAME = "planned"
PIPED_WIDTH = 110  # characters of a line where the output is no terminal


@hydra_main(config_path=None, config_name="sharding")
def main(config: DictConfig) -> None:
    """Plans what the configuration names."""
    checked = check_config(config)
    set_up_logging(checked.top.log_level, checked.top.popart_log_level)
    checked = with_device_formats(checked)
    console = Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)
    model = model_of(checked)
    own = _own_plan(checked, model, console)
    planned = plan_config(_free(checked), model)
    plan = planned.chosen
    words = explain(plan, planned.search, checked.plan.objective, own)
    _print(console, checked, planned, own, words)
    folder = Path(HydraConfig.get().runtime.output_dir) / checked.plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    content = report_json(model.name, checked.plan.objective, plan, planned.search, own, words)
    write_text(folder / "plan.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / f"{YAML_NAME}.yaml", runnable_yaml(config, plan, words))
    written = ["plan.json", f"{YAML_NAME}.yaml"]
    if checked.plan.pictures:
        written += draw_pictures(folder, checked, planned)
    console.print(f"Written to {folder}: {', '.join(written)}")
    console.print(footer(), style="dim")


def _free(checked: CheckedConfig) -> CheckedConfig:
    """The same configuration with stages and replicas left to the planner."""
    global_args = dataclasses.replace(checked.global_args, num_replicas=AUTO)
    return dataclasses.replace(checked, global_args=global_args, model={**checked.model, "layer_per_ipu": AUTO})


def _own_plan(checked: CheckedConfig, model: Any, console: Console) -> Plan | None:
    """The plan that the configuration itself holds; what is wrong with it is printed."""
    if AUTO in (checked.global_args.num_replicas, checked.model.get("layer_per_ipu")):
        return None
    try:
        own = score_config(checked, model)
    except ConfigError as error:
        console.print(f"[red]Your own plan:[/] {error}", highlight=False)
        return None
    for line in problems(own, model.graph):
        console.print(f"[red]Your own plan:[/] {line}", highlight=False)
    for line in warnings(own):
        console.print(f"[yellow]Your own plan:[/] {line}", highlight=False)
    return own


def _print(console: Console, checked: CheckedConfig, planned: Planned, own: Plan | None, words: list[str]) -> None:
    plan, device, workload = planned.chosen, planned.device, planned.workload
    precision = checked.global_args.precision
    note = weights_note(str(precision), planned.model.graph, planned.model.stored_bits)
    rows = [
        ("model", f"{planned.model.name}, {planned.model.blocks} blocks, precision {precision}"),
        ("device", f"{device.name}: {device.description}"),
        (
            "workload",
            f"batch {workload.batch}, prompt {workload.prompt_tokens} tokens, max_length {workload.max_length}, "
            f"attention over {workload.decode_slots} slots",
        ),
        ("objective", checked.plan.objective),
        ("plan", f"{describe(plan)}: num_replicas={plan.replicas} layer_per_ipu={plan.layer_per_ipu}"),
        ("token", f"{milliseconds(plan.latency)} (unvalidated)"),
        ("prompt", milliseconds(device.seconds(plan.prompt.total))),
    ]
    console.print(plan_table([*rows, *([("note", note)] if note else [])]))
    for table in (stage_table(plan, "Stages"), op_table(plan), front_table(planned.search, plan, own)):
        console.print()
        console.print(table)
    console.print()
    for line in [*words, *warnings(plan)]:
        console.print(f"- {line}", highlight=False)


def draw_pictures(folder: Path, checked: CheckedConfig, planned: Planned) -> list[str]:
    """Draws all pictures into a folder; returns their names."""
    from poptransformer.ipu import pictures

    plan, name = planned.chosen, planned.model.name
    pictures.draw_memory(folder / "memory.png", plan, name)
    pictures.draw_liveness(folder / "liveness.png", plan, name)
    pictures.draw_gantt(folder / "timeline.png", plan, name)
    names = ["memory.png", "liveness.png", "timeline.png"]
    if checked.plan.sweep:
        variants = [pictures.Variant(*variant) for variant in sweep(checked, planned)]
        pictures.draw_sweep(folder / "sweep.png", variants, plan, name)
        names.append("sweep.png")
    return names


def runnable_yaml(config: DictConfig, plan: Plan, words: list[str]) -> str:
    """Returns the configuration with the plan in place, as a file of its own.

    Args:
        config: the composed configuration.
        plan: the chosen plan.
        words: the explanation, which becomes a comment.
    """
    values = OmegaConf.to_container(config, resolve=True)
    content: dict[str, Any] = {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}
    device = content.pop("device", None)
    content.pop("plan", None)
    content["global_args"] |= global_args_of(plan, content["global_args"]["batch_per_step"])
    content["model"]["layer_per_ipu"] = plan.layer_per_ipu
    named = f" for {device['name']}" if device else f" for {plan.device.name}"
    comment = "".join(f"# {line}\n" for line in [f"Written by poptransformer.plan{named}.", *words])
    defaults = yaml_text({"defaults": ["poptransformer", "_self_"]})
    return f"{comment}{defaults}{yaml_text(content)}"


def yaml_text(content: dict[str, Any]) -> str:
    """Returns a mapping as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(content))


if __name__ == "__main__":
    main()
