"""What a run says and tells MLflow as it begins or goes on."""

from collections.abc import Sequence

from configs import ConfigError
from trainer.core.console import say
from trainer.engine.engine import Engine
from trainer.evaluation.held_out import Validator
from trainer.evaluation.online.slices import SharedTask
from trainer.evaluation.tasks.curve_names import online_tag
from trainer.models import pretrained
from trainer.run import story
from trainer.run.checkpoint.resume import Resumed
from trainer.run.reading import Opened
from trainer.run.run_spec import Start
from trainer.tracking.version_text import WINDOWS_TAG


def check_kernels(engine: Engine) -> str:
    """What computes the backbone's layers, in words; "" where there is nothing to choose.

    Raises:
        ConfigError: model.kernel wants what this machine or ZeRO stage does not have.
    """
    try:
        computed_by: str = engine.network.backbone.computed_by(engine.device, engine.settings.compute_dtype)
        return computed_by
    except ValueError as fault:
        raise ConfigError(str(fault)) from fault


def say_beginning(validator: Validator, data: Opened, resumed: Resumed | None, *, kernels: str) -> None:
    if kernels:
        say(kernels)
    for uri in validator.left_out:
        say(f"{uri} has no val split: it is trained on, and left out of validation")
    for dataset in data.datasets:
        if dataset.has_grown:
            say(
                f"{dataset.uri} has grown since this run began, which goes on with what it began with: "
                f"manifest {dataset.digest[:12]}"
            )
    if resumed:
        say(f"going on after step {resumed.step}, from {resumed.uri}")


def start_of(
    engine: Engine,
    data: Opened,
    validator: Validator,
    tasks: Sequence[SharedTask],
    resumed: Resumed | None,
) -> Start:
    """Where the run takes its training up, and what MLflow shows of it."""
    tags = {
        "dataset.manifest_sha256": ",".join(dataset.digest for dataset in data.datasets),
        "world_size": str(engine.group.size),
        "zero_stage": str(engine.settings.zero_stage),
        WINDOWS_TAG: validator.windows_sha256,
    } | online_tag([task.name for task in tasks])
    if data.regions:
        tags["regions.sha256"] = ",".join(bed.sha256 for bed in data.regions)
    parameters = pretrained.parameter_count(engine.network)
    inputs = story.dataset_inputs(data.datasets)
    if resumed is None:
        return Start(parameters, tags, inputs=inputs)
    return Start(parameters, tags, step=resumed.step, waiting=resumed.metrics, inputs=inputs)
