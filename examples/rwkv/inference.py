# SPDX-License-Identifier: Apache-2.0
"""Generate text with RWKV-4.

    python inference.py --config-name=sharding log_level='info' model.topk=5

`python inference.py --help` lists the models of conf/model and every key.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without being installed

from omegaconf import DictConfig

from poptransformer.utils import hydra_main, log_performance, prepare_model_session, print_stream, print_texts, turns


@hydra_main(config_path="conf", config_name="sharding")
def main(config: DictConfig) -> None:
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
