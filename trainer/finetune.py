"""A registered model on a labelled task: k-mer floor, frozen probe, fine-tuning, and the same network from
scratch.

``python -m trainer.finetune --model models:/findna@candidate --task configs/tasks/NAME.yaml [key=value ...]``

Everything that is chosen is chosen on the dev split; test is scored once for each (seed, mode), in ``_one``.
"""

import argparse
import json
import sys

import torch

import configs
from cluster.process import host, paths
from cluster.process.command import exit_code
from cluster.process.exits import EXIT_OK
from cluster.storage import store
from configs import ConfigError
from trainer.evaluation import embedding_table
from trainer.evaluation.tasks.config import ROLES, TaskConfig
from trainer.evaluation.tasks.downstream import finetune
from trainer.evaluation.tasks.results import as_text, summarise
from trainer.tracking.config import default_tracking_uri
from trainer.tracking.registry import Registry


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
        task = configs.load(TaskConfig, args.task, args.overrides)
        paths.refuse_lost(
            outputs={"--json": args.json, "--track-uri": args.track_uri or default_tracking_uri()},
            inputs=[(role, uri) for role in ROLES if (uri := getattr(task, role))],
        )
        if args.json:
            embedding_table.refuse_folder(args.json, "rows.json")
            if args.json.lower().endswith(tuple(embedding_table.FORMATS)):
                raise ConfigError(
                    f"--json {configs.redact(args.json)} says another format; JSON is written, to a name "
                    "that ends in .json"
                )
        torch.set_num_threads(host.threads_per_process(1))
        results = finetune(Registry(args.track_uri), args.model, task)
        print(as_text(summarise(results)), flush=True)
        if args.json:
            rows = [result.flat() for result in results]
            store.write_bytes(args.json, json.dumps(rows, indent=1).encode() + b"\n")
        return EXIT_OK

    return exit_code(
        run,
        debug=args.debug,
        resumable=True,
        interrupted="results that were told are in MLflow; the same command starts all of them "
        "again (modes=... and seeds=... choose)",
    )


if __name__ == "__main__":
    sys.exit(main())
