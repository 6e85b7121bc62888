"""A registered model on a labelled task: floors, frozen probe, fine-tuning, and the same from scratch.

``python -m trainer.finetune --model models:/findna@candidate --task configs/tasks/NAME.yaml [key=value ...]``
"""

import argparse
import sys

import torch

from cluster.process import exits, host
from cluster.process.command import exit_code
from trainer.evaluation.tasks.finetune_command import FinetuneRequest, finetune_task


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.finetune", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("--task", required=True, help="YAML file, see configs/tasks/")
    parser.add_argument("--track-uri", help="MLflow; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--json", help="also write the rows there, one a mode and seed")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of the task's config, dotted keys"
    )
    args = parser.parse_args(arguments)

    def run() -> int:
        torch.set_num_threads(host.threads_per_process(1))
        request = FinetuneRequest(args.model, args.task, tuple(args.overrides), args.track_uri, args.json)
        finetune_task(request)
        return exits.EXIT_OK

    return exit_code(
        run,
        debug=args.debug,
        resumable=True,
        interrupted="finished results are in MLflow; the same command computes what is missing",
    )


if __name__ == "__main__":
    sys.exit(main())
