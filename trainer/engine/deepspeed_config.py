"""DeepSpeed's settings: ours, those that a user may add, and those that are refused and why.

The teacher's shards follow the optimiser's own partition: a setting that moves, shares or rounds the fp32
masters would make the teacher wrong without any error. Only settings that are known not to do so are
accepted, and only with values that DeepSpeed can run with, since it answers others with a traceback or not at
all. tests/dist/test_settings.py runs each. Checked with DeepSpeed 0.19.8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch

from trainer.engine.compile_mode import Compile

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class EngineSettings:
    """How an engine trains on each of its ranks.

    micro_batch: rows of one rank in one forward. accumulation: such forwards in a step. grad_clip: 0 is off.
    deepspeed: further settings for DeepSpeed, of those that ``faults`` accepts. compile: compiled.py.
    """

    zero_stage: int
    precision: Precision
    micro_batch: int
    accumulation: int
    weight_decay: float
    betas: tuple[float, float]
    grad_clip: float
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    compile: Compile = "off"

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the weights that forward and backward use; masters are fp32."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class _Values(NamedTuple):
    """The values that a setting may have, in words and as a test."""

    accepted: str
    is_valid: Callable[[Any], bool]


def _whole(least: int, *, even: bool = False) -> _Values:
    """Whole numbers, also written as 5e8, as in DeepSpeed's documents, which YAML reads as a float."""

    def is_valid(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return least <= value < 1 << 63 and value % (2 if even else 1) == 0

    return _Values(f"{'an even' if even else 'a whole'} number of at least {least} and below 2^63", is_valid)


_SWITCH = _Values("true or false", lambda value: isinstance(value, bool))
_NAMES = _Values(
    "a list of names of collectives, such as [all_gather_into_tensor]",
    lambda value: isinstance(value, list | tuple) and all(isinstance(name, str) for name in value),
)
_ZERO = {
    "allgather_bucket_size": _whole(2, even=True),  # its parts begin at multiples of 2 entries
    "contiguous_gradients": _SWITCH,
    "ignore_unused_parameters": _SWITCH,
    "overlap_comm": _SWITCH,
    "reduce_bucket_size": _whole(1),
    "reduce_scatter": _SWITCH,
    "stage3_max_live_parameters": _whole(0),
    "stage3_max_reuse_distance": _whole(0),
    "stage3_model_persistence_threshold": _whole(0),
    "stage3_param_persistence_threshold": _whole(0),
    "stage3_prefetch_bucket_size": _whole(0),
    "sub_group_size": _whole(0),
    "use_multi_rank_bucket_allreduce": _SWITCH,
}
_COMMS = {"debug": _SWITCH, "enabled": _SWITCH, "prof_all": _SWITCH, "prof_ops": _NAMES, "verbose": _SWITCH}
_FLOPS = {  # without output_file, which rank 0 would open for the first time in the middle of a run
    "detailed": _SWITCH,
    "enabled": _SWITCH,
    "module_depth": _whole(-1),
    "profile_step": _whole(1),
    "top_modules": _whole(1),
}
_SECTIONS = {"comms_logger": _COMMS, "flops_profiler": _FLOPS, "zero_optimization": _ZERO}
_SWITCHES = {"memory_breakdown": _SWITCH, "wall_clock_breakdown": _SWITCH}
_NOT_MAPPED = "the teacher's shards do not follow it"
_REFUSED = {
    "train_batch_size": "set train.global_batch",
    "train_micro_batch_size_per_gpu": "set train.micro_batch",
    "gradient_accumulation_steps": "set train.micro_batch",
    "gradient_clipping": "set train.grad_clip",
    "optimizer": "set train.lr, train.betas and train.weight_decay",
    "scheduler": "set train.lr, train.warmup_fraction and train.final_lr_fraction",
    "bf16": "set train.precision",
    "fp16": "set train.precision",
    "data_types": "set train.precision",
    "zero_optimization.stage": "set train.zero_stage",
    "zero_optimization.round_robin_gradients": "it deals the fp32 masters out in another order than the "
    "weights",
    "zero_optimization.zero_hpz_partition_size": f"hpZ keeps a second partition of the weights; "
    f"{_NOT_MAPPED}",
    "zero_optimization.mics_shard_size": f"MiCS partitions within sub-groups; {_NOT_MAPPED}",
    "zero_optimization.zero_quantized_weights": "quantised weights are not the teacher's average",
    "zero_optimization.zero_quantized_nontrainable_weights": "quantised weights are not the teacher's "
    "average",
    "zero_optimization.zero_quantized_gradients": "quantised gradients differ with the number of ranks",
    "zero_optimization.offload_param": f"parameters on NVMe or in host memory: {_NOT_MAPPED}",
    "zero_optimization.offload_optimizer": f"fp32 masters on NVMe or in host memory: {_NOT_MAPPED}",
    "zero_optimization.memory_efficient_linear": "it replaces F.linear in the whole process and rounds "
    "differently",
}


def faults(extra: Mapping[str, Any]) -> list[str]:
    """A sentence, with the dotted key, for each of a user's DeepSpeed settings that cannot be used."""
    found = []
    for key, value in extra.items():
        if key not in _SECTIONS:
            found += _faults({key: value}, _SWITCHES, known=_SWITCHES | _SECTIONS)
        elif isinstance(value, Mapping):
            found += _faults(value, _SECTIONS[key], prefix=f"{key}.", known=_SECTIONS[key])
        else:
            found.append(f"{key} must be a section of settings, not {value!r}")
    return found


def training_config(settings: EngineSettings, *, ranks: int) -> dict[str, Any]:
    """The config for ``deepspeed.initialize``: the user's settings, overridden by ours."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "round_robin_gradients": False,
        "memory_efficient_linear": False,
    }
    config: dict[str, Any] = {
        **settings.deepspeed,
        "train_batch_size": settings.micro_batch * settings.accumulation * ranks,
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "gradient_clipping": settings.grad_clip,  # DeepSpeed's own default is 1
        "steps_per_print": 1 << 60,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice a step
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {**settings.deepspeed.get("zero_optimization", {}), **zero},
    }
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
        # Under ZeRO-0 DeepSpeed refuses to accumulate in another dtype; TrainConfig allows no accumulation
        # there.
        config["data_types"] = {"grad_accum_dtype": "fp32" if settings.zero_stage else "bf16"}
        config["communication_data_type"] = "fp32"
    return config


def inference_config(settings: EngineSettings) -> dict[str, Any]:
    """The config of a ZeRO-3 module that is only read, such as the teacher: no optimiser, no batch of its
    own."""
    alone = replace(settings, zero_stage=3, micro_batch=1, accumulation=1, grad_clip=0.0)
    config = training_config(alone, ranks=1)
    return {key: value for key, value in config.items() if key not in ("train_batch_size", "data_types")}


def _faults(
    given: Mapping[Any, Any], accepted: Mapping[str, _Values], *, known: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    found = []
    for name, value in given.items():
        key = f"{prefix}{name}"
        if key in _REFUSED:
            found.append(f"{key} cannot be set: {_REFUSED[key]}")
        elif name not in accepted:
            found.append(
                f"{key} is not among the settings known to keep the teacher exact: {', '.join(sorted(known))}"
            )
        elif not accepted[name].is_valid(value):
            found.append(f"{key} must be {accepted[name].accepted}, not {value!r}")
    return found
