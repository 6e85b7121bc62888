"""``python -m trainer.demo``: the whole main job on embedded defaults, genome to fine-tuned model, in a new
folder.

It runs the very commands that a user would run, prints each, and ends with a table made from what they wrote.
"""

import argparse
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import configs
from cluster.process import paths
from cluster.process.command import exit_code
from cluster.process.exits import EXIT_OK
from cluster.storage import store
from configs import ConfigError, redact
from data_prep import shards
from trainer.evaluation.statistics import standard_error
from trainer.evaluation.tasks.results import summarise
from trainer.evaluation.tasks.results_log import past_results
from trainer.evaluation.tasks.results_table import as_text
from trainer.run import run_status
from trainer.run.config import TrainConfig
from trainer.tracking import names
from trainer.tracking.registry import Registry

TRACKING = "sqlite:///mlflow.db"  # whatever the environment says: the demo needs no server
TRAIN_CONFIG = "configs/train/demo.yaml"
ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.demo", description=__doc__)
    parser.add_argument(
        "--generated", action="store_true", help="use the generated genome, even where DNA_DATA is"
    )
    parser.add_argument("--genome-bp", type=int, default=6_000_000, help="size of the generated genome")
    parser.add_argument("--rows", type=int, default=3000, help="labelled rows that fine-tuning learns from")
    parser.add_argument("--folder", help="a new folder for the results, default runs/demo-TIME")
    parser.add_argument("--processes", type=int, help="ranks of the pretraining, default 2; 1 on one GPU")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of configs/train/demo.yaml"
    )
    args = parser.parse_args(arguments)
    return exit_code(lambda: demo(args), debug=args.debug)


def demo(args: argparse.Namespace) -> int:
    """Run it all; 0, or the exit code of the first command that failed."""
    start = time.monotonic()
    folder = Path(args.folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"))
    dataset = folder / "dataset"
    where = [
        f"data.uri={dataset}",
        f"run.dir={folder / 'pretrain'}",
        f"run.name={folder.name}",
        f"track.uri={TRACKING}",
    ]
    processes = args.processes or _ranks()
    if args.rows < 1:
        raise ConfigError(f"--rows: {args.rows} must be at least 1")
    config = _checked([*where, *args.overrides], dataset=dataset, processes=processes)
    folder.mkdir(parents=True)
    data = Path(
        paths.expand(os.environ.get("DNA_DATA") or str(ROOT.parent / "shared" / "data"), what="DNA_DATA")
    )
    real = (data / "genomes" / "sacCer_R64.fa.gz").is_file()
    python = [sys.executable, "-m"]
    environment: dict[str, str] = {}
    commands: list[list[str]] = []
    if real and not args.generated:
        print(
            "Genome: S. cerevisiae R64 from DNA_DATA; task: mouse_0 (transcription factor binding, GUE).",
            flush=True,
        )
        data_config, task = "configs/data/yeast.yaml", "configs/tasks/mouse_0.yaml"
    else:
        why = "as asked for" if args.generated else f"since {data} has no yeast genome"
        print(f"Genome: generated, {why}; task: find its planted motifs.", flush=True)
        data_config, task = "configs/data/synthetic.yaml", "configs/tasks/synthetic.yaml"
        environment["DNA_SYNTH"] = str(folder / "genome")
        commands.append(
            [*python, "data_prep", "synth", "--output", environment["DNA_SYNTH"], "--bp", str(args.genome_bp)]
        )
    train = [*_deepspeed(processes), str(ROOT / "trainer/main.py"), "--config", TRAIN_CONFIG]
    commands += [
        [*python, "data_prep", "build", "--config", data_config, f"output={dataset}", "workers=2"],
        [*train, *where, *args.overrides],
    ]
    for command in commands:
        if code := _run(command, environment):
            return code
    registry = Registry(config.track.uri)
    version = _registered(registry, config)
    tracking = ["--track-uri", config.track.uri]
    model = f"models:/{version.name}/{version.version}"
    for command in (
        [
            *python,
            "trainer.finetune",
            "--model",
            model,
            "--task",
            task,
            *tracking,
            f"max_train_rows={args.rows}",
            "finetune.epochs=2",
            "finetune.lr=3e-4",
        ],
        [*python, "trainer.report", version.run_id, *tracking, "--output", str(folder / "report")],
    ):
        if code := _run(command, environment):
            return code
    print(_table(registry, dataset, version))
    uri = redact(config.track.uri)
    runs = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
    print(f"\nReport: {folder / 'report'}/index.html   Runs: {runs}")
    print(f"The whole job took {time.monotonic() - start:.0f} s.")
    return EXIT_OK


def _checked(overrides: Sequence[str], *, dataset: Path, processes: int) -> TrainConfig:
    """The config of the pretraining, looked at before any work.

    Raises:
        ConfigError: it is wrong, or no demo. TrackError, StoreError: MLflow or run.dir take no run of it.
    """
    config = configs.load(TrainConfig, TRAIN_CONFIG, overrides)
    faults = config.world_faults(processes)
    if [part.uri for part in config.data.uri] != [str(dataset)]:
        faults.append(
            "data.uri: the demo trains on the dataset that it makes; for another one use trainer/main.py"
        )
    if config.track.registered_model is None:
        faults.append(
            "track.registered_model: the demo fine-tunes the model that it registers, so that needs a name"
        )
    if faults:
        raise ConfigError("\n  ".join(faults))
    run_status.look(config)
    database = names.database_file(config.track.uri)
    if database is None or database.exists():
        Registry(config.track.uri).usable(config.track.experiment)
    return config


def _ranks() -> int:
    """Two, which shows that ranks agree; but no more than there are GPUs, if any: two ranks cannot share
    one."""
    return min(2, torch.cuda.device_count()) or 2


def _deepspeed(processes: int) -> list[str]:
    with socket.socket() as probe:  # its default port may be taken by another run on this machine
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_accelerators", str(processes), "--master_port", str(port)]


def _run(command: list[str], environment: dict[str, str]) -> int:
    shown = [Path(command[0]).name, *command[1:]]
    print(f"\n$ {redact(shlex.join(shown))}", flush=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        command, env={**os.environ, **environment, "PYTHONPATH": path}, check=False
    ).returncode


def _registered(registry: Registry, config: TrainConfig) -> Any:
    """The version that the demo's own run registered, found by what that left in run.dir."""
    key = run_status.read_key(config.run.dir)
    assert key, "a run that ended well has a key"
    (run,) = registry.tagged(config.track.experiment, {"run.key": key}, finished=True)
    return registry.version(f"models:/{config.track.registered_model}/{run.data.tags['model.version']}")


def _table(registry: Registry, dataset: Path, version: Any) -> str:
    """What the job made, from the manifest, the MLflow run and its fine-tuning runs."""
    manifest = shards.Manifest.from_bytes(store.read_bytes(str(dataset / shards.MANIFEST)))
    bp = sum(manifest.bp(split) for split in shards.SPLITS)
    written = [shard for split in shards.SPLITS for shard in manifest.shards[split]]
    run_id = version.run_id
    metrics = registry.run(run_id).data.metrics
    accuracy = registry.history(run_id, "val/mlm_accuracy")["value"].tolist()
    error = standard_error(accuracy[-1], metrics["val/scored_positions"])
    majority, markov = metrics["val/mlm_accuracy_majority"], metrics["val/mlm_accuracy_markov"]
    steps = len(registry.history(run_id, "loss/total"))
    speeds = registry.history(run_id, "throughput/bp_per_s")["value"]  # none of fewer steps than track.every
    lines = [
        (
            "genome",
            f"{bp:,} bp in {len(written)} shards, {sum(s.bytes for s in written) / bp:.4f} bytes per bp",
        ),
        ("pretraining", f"{steps} steps" + (f", {speeds.median():,.0f} bp/s" if len(speeds) else "")),
        (
            "masked accuracy",
            f"{accuracy[-1]:.4f} ± {error:.4f} (before training {accuracy[0]:.4f}), held out",
        ),
        ("  majority letter", f"{majority:.4f}: {(accuracy[-1] - majority) / error:+.1f} standard errors"),
        ("  4+4 Markov", f"{markov:.4f}: {(accuracy[-1] - markov) / error:+.1f} standard errors"),
    ]
    names = ("teacher_entropy", "embedding_std", "effective_rank", "alignment", "uniformity")
    found = [f"{name} {metrics[f'health/{name}']:.2f}" for name in names if f"health/{name}" in metrics]
    lines.append(("health", ", ".join(found)))
    width = max(len(name) for name, _ in lines)
    summary = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
    return f"\n{summary}\n\n{as_text(summarise(past_results(registry, version.name, version.version)))}"


if __name__ == "__main__":
    sys.exit(main())
