# SPDX-License-Identifier: Apache-2.0
"""Generate text as a configuration says, wherever it lies: the command of the examples without a script.

python -m poptransformer.inference --config-dir examples/gpt2/conf --config-name sharding model.topk=5
"""

from __future__ import annotations

from omegaconf import DictConfig

from poptransformer.utils import hydra_main, log_performance, prepare_model_session, print_stream, print_texts, turns


@hydra_main(config_path=None, config_name="sharding")
def main(config: DictConfig) -> None:
    """Answers the inputs of the configuration."""
    session, model = prepare_model_session(config)
    for inputs in turns(config.inputs):
        input_dict = model.build_input_dict(**inputs)
        if config.stream:
            print_stream(session.stream(input_dict), inputs)
            model.build_output_dict(session.anchor_arrays)  # the conversation goes on from here
        else:
            session.run(input_dict)
            output_dict = model.build_output_dict(session.anchor_arrays)
            print_texts(output_dict["output_strings"], inputs)
        log_performance(session.performance())


if __name__ == "__main__":
    main()
