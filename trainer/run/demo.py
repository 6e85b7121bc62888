"""The demo: genome, shards, pretraining, registered model, fine-tuning, report, each by its own command."""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import configs
from cluster.process import exits, paths
from cluster.storage import store
from configs import ConfigError, redact
from data_prep import shards
from data_prep.manifests import open_manifest
from trainer.evaluation.statistics import standard_error
from trainer.evaluation.tasks.curve_names import FLOOR, KNN, PROBE, downstream
from trainer.evaluation.tasks.kept.kept_models import kept_versions
from trainer.evaluation.tasks.results.parent_story import headlines
from trainer.evaluation.tasks.results.results import summarise
from trainer.evaluation.tasks.results.results_log import past_results
from trainer.evaluation.tasks.results.results_table import as_text
from trainer.run import run_status, world_size
from trainer.run.config import TrainConfig
from trainer.tracking import names
from trainer.tracking.registry import Registry

_TRACKING = "sqlite:///mlflow.db"  # also if the environment names a server: the demo needs none
_TRAIN_CONFIG = "configs/train/demo.yaml"
_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = (sys.executable, "-m")
_ROWS_SHOWN = 5  # predictions at the end
_RECIPE = (
    "finetune.epochs=30",
    "finetune.batch=16",
    "finetune.lr=1e-3",
    "finetune.patience=10",  # with fewer some trainings from scratch end before they begin to learn
    "finetune.pooling=mean_max",
)

Command = Sequence[str]


@dataclass(frozen=True)
class DemoOptions:
    """``folder``: a new one, None for runs/demo-TIME. ``generated``: the generated genome in any case.

    ``rows``: labelled rows that fine-tuning learns from, ``seeds`` times. ``processes``: ranks of the
    pretraining. ``overrides``: of its config.
    """

    folder: Path | None = None
    generated: bool = False
    genome_bp: int = 6_000_000
    rows: int = 200
    seeds: int = 2
    processes: int | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class _Genome:
    """Where the genome comes from, and the task that fits it."""

    message: str
    data_config: str
    task: str
    commands: Sequence[Command] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def run_demo(options: DemoOptions) -> int:
    """Run it all; 0, or the exit code of the first command that failed.

    Raises:
        ConfigError: the options or the config are wrong. TrackError, StoreError: MLflow or run.dir refuse a
        run. All before any work.
    """
    start = time.monotonic()
    folder = options.folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    dataset, processes = folder / "dataset", options.processes or _default_ranks()
    genome = _choose_genome(options, folder)
    overrides = [
        f"data.uri={dataset}",
        f"run.dir={folder / 'pretrain'}",
        f"run.name={folder.name}",
        f"track.uri={_TRACKING}",
        "track.report_every=0",  # the demo makes one itself, once there are results on the task
        f"val.tasks=[{genome.task}]",
        *options.overrides,
    ]
    for name, value in (("rows", options.rows), ("seeds", options.seeds)):
        if value < 1:
            raise ConfigError(f"--{name}: {value} must be at least 1")
    config = _checked_config(overrides, dataset=dataset, processes=processes)
    folder.mkdir(parents=True)
    print(genome.message, flush=True)
    build = ("data_prep", "build", "--config", genome.data_config, f"output={dataset}", "workers=2")
    train = (*_deepspeed(processes), str(_ROOT / "trainer/main.py"), "--config", _TRAIN_CONFIG, *overrides)
    if code := _run_all([*genome.commands, (*_PYTHON, *build), train], genome.environment):
        return code
    registry = Registry(config.track.uri)
    version = _registered(registry, config)
    after = _evaluation(version, genome.task, config.track.uri, options, report=folder / "report")
    if code := _run_all(after, genome.environment):
        return code
    (kept,) = kept_versions(registry, version)
    few = folder / "sequences.csv"
    few.write_text(_first_rows(kept.run.data.params["test_uri"]))
    predict = _prediction(kept.uri, few, folder / "predictions.csv", config.track.uri)
    if code := _run_all([predict], genome.environment):
        return code
    print((folder / "predictions.csv").read_text(), end="")
    print(_table(registry, dataset, version, task=Path(genome.task).stem))
    uri = redact(config.track.uri)
    runs = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
    print(f"\nReport: {folder / 'report'}/index.html   Runs: {runs}")
    print(f"The fine-tuned model is kept as {kept.uri}. To use it on sequences of your own:")
    print(f"  {_shown(_prediction(kept.uri, Path('FILE.fa'), Path('PREDICTIONS.csv'), config.track.uri))}")
    print(f"The whole job took {time.monotonic() - start:.0f} s.")
    return exits.EXIT_OK


def _choose_genome(options: DemoOptions, folder: Path) -> _Genome:
    """Yeast if DNA_DATA has it, otherwise a generated genome."""
    given = os.environ.get("DNA_DATA") or str(_ROOT.parent / "shared" / "data")
    data = Path(paths.expand(given, what="DNA_DATA"))
    if (data / "genomes" / "sacCer_R64.fa.gz").is_file() and not options.generated:
        return _Genome(
            "Genome: S. cerevisiae R64 from DNA_DATA; task: H4 (a histone mark of yeast, GUE).",
            data_config="configs/data/yeast.yaml",
            task="configs/tasks/H4.yaml",
        )
    why = "as asked for" if options.generated else f"since {data} has no yeast genome"
    output = str(folder / "genome")
    synth = (*_PYTHON, "data_prep", "synth", "--output", output, "--bp", str(options.genome_bp))
    return _Genome(
        f"Genome: generated, {why}; task: find its planted motifs.",
        data_config="configs/data/synthetic.yaml",
        task="configs/tasks/synthetic.yaml",
        commands=[synth],
        environment={"DNA_SYNTH": output},
    )


def _evaluation(
    version: Any, task: str, track_uri: str, options: DemoOptions, *, report: Path
) -> list[Command]:
    """The commands that use the registered model: fine-tuning, and the report of its run."""
    tracking = ("--track-uri", track_uri)
    model = f"models:/{version.name}/{version.version}"
    finetune = ("trainer.finetune", "--model", model, "--task", task, *tracking)
    few = (f"max_train_rows={options.rows}", f"seeds=[{','.join(map(str, range(options.seeds)))}]")
    return [
        (*_PYTHON, *finetune, *few, *_RECIPE),
        (*_PYTHON, "trainer.report", version.run_id, *tracking, "--output", str(report)),
    ]


def _first_rows(uri: str) -> str:
    """Some rows of a labelled file, as CSV."""
    with store.open_read(uri) as file:
        return "".join(file.readline().decode() for _ in range(1 + _ROWS_SHOWN))


def _prediction(model: str, source: Path, output: Path, track_uri: str) -> Command:
    """The command that predicts with a fine-tuned model."""
    files = ("--input", str(source), "--output", str(output))
    return (*_PYTHON, "trainer.predict", "--model", model, *files, "--track-uri", track_uri)


def _shown(command: Command) -> str:
    """As a user would type it."""
    return str(redact(shlex.join([Path(command[0]).name, *command[1:]])))


def _checked_config(overrides: Sequence[str], *, dataset: Path, processes: int) -> TrainConfig:
    """The config of the pretraining.

    Raises:
        ConfigError: it is wrong, or not a demo's. TrackError, StoreError: MLflow or run.dir refuse a run.
    """
    config = configs.load(TrainConfig, _TRAIN_CONFIG, overrides)
    faults = world_size.faults(config.train, lanes=config.data.lanes, world=processes)
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
    run_status.inspect(config)
    database = names.database_file(config.track.uri)
    if database is None or database.exists():
        Registry(config.track.uri).usable(config.track.experiment)
    return config


def _default_ranks() -> int:
    """2, to show that ranks agree; but no more than there are GPUs, if any: two ranks cannot share one."""
    return min(2, torch.cuda.device_count()) or 2


def _deepspeed(processes: int) -> Command:
    with socket.socket() as probe:  # its default port may be taken by another run on this machine
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return (launcher, "--num_accelerators", str(processes), "--master_port", str(port))


def _run_all(commands: Sequence[Command], environment: Mapping[str, str]) -> int:
    """Run one after the other; 0, or the exit code of the first that failed."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    everything = {**os.environ, **environment, "PYTHONPATH": path}
    for command in commands:
        print(f"\n$ {_shown(command)}", flush=True)
        if code := subprocess.run(command, env=everything, check=False).returncode:
            return code
    return 0


def _registered(registry: Registry, config: TrainConfig) -> Any:
    """The version that the demo's own run registered, found by the key in its run.dir."""
    key = run_status.read_key(config.run.dir)
    assert key, "a run that ended well has a key"
    (run,) = registry.tagged(config.track.experiment, {"run.key": key}, finished=True)
    return registry.version(f"models:/{config.track.registered_model}/{run.data.tags['model.version']}")


def _table(registry: Registry, dataset: Path, version: Any, *, task: str) -> str:
    """The results, from the manifest, the MLflow run and its fine-tuning runs of ``task``."""
    manifest = open_manifest(str(dataset)).manifest
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
    readings = ("effective_rank", "alignment", "uniformity")
    found = [f"{name} {metrics[f'health/{name}']:.2f}" for name in readings if f"health/{name}" in metrics]
    lines.append(("health", ", ".join(found)))
    if (information := metrics.get("batch_health/patch_information")) is not None:
        learned = metrics["batch_health/patch_learned"]
        nats = f"{information:.2f} nats of a letter, the student knows {learned:.2f} of them"
        lines.append(("distillation", f"the teacher tells {nats}"))
    probe, knn, floor = (
        registry.history(run_id, downstream(task, f"{name}_mcc"))["value"] for name in (PROBE, KNN, FLOOR)
    )
    for name, scores in ((f"{task}, probe", probe), ("  20 neighbours", knn)):
        if len(scores):  # none, if an override took the task away
            rising = " → ".join(f"{score:.3f}" for score in scores)
            lines.append((name, f"{rising} (floor {floor.iloc[-1]:.3f}), MCC on dev as it trained"))
    results = summarise(past_results(registry, version.name, version.version))
    width = max(len(name) for name, _ in lines)
    shown = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
    told = [f"{name}: {sentence}" for name, sentence in headlines(results).items()]
    return "\n".join(["", shown, "", as_text(results), "", *told])
