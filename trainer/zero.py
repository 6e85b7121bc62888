"""DeepSpeed's settings as this project uses it: ours, what a user may add, and what is refused and why.

The teacher's shards follow the optimiser's own partition: a setting that moves, shares or rounds the fp32 masters would
make the teacher wrong without a word. Only settings that are known not to are let through.
Checked with DeepSpeed 0.19.8.
"""

from collections.abc import Mapping
from typing import Any, Literal

Precision = Literal["fp32", "bf16"]

_ALLOWED = {"zero_optimization", "comms_logger", "flops_profiler", "memory_breakdown", "wall_clock_breakdown"}
_ALLOWED_ZERO = {
    "allgather_bucket_size", "contiguous_gradients", "ignore_unused_parameters", "overlap_comm", "reduce_bucket_size",
    "reduce_scatter", "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
    "sub_group_size", "use_multi_rank_bucket_allreduce",
}  # fmt: skip
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
    "zero_optimization.round_robin_gradients": "it deals the fp32 masters out in another order than the weights",
    "zero_optimization.zero_hpz_partition_size": f"hpZ keeps a second partition of the weights; {_NOT_MAPPED}",
    "zero_optimization.mics_shard_size": f"MiCS partitions within sub-groups; {_NOT_MAPPED}",
    "zero_optimization.zero_quantized_weights": "quantised weights are not the teacher's average",
    "zero_optimization.zero_quantized_nontrainable_weights": "quantised weights are not the teacher's average",
    "zero_optimization.zero_quantized_gradients": "quantised gradients differ with the number of ranks",
    "zero_optimization.offload_param": f"parameters on NVMe or in host memory: {_NOT_MAPPED}",
    "zero_optimization.offload_optimizer": f"fp32 masters on NVMe or in host memory: {_NOT_MAPPED}",
    "zero_optimization.memory_efficient_linear": "it replaces F.linear in the whole process and rounds differently",
}


def faults(extra: Mapping[str, Any]) -> list[str]:
    """What in a user's additional DeepSpeed settings cannot be used: a sentence each, with the dotted key."""
    found = [_why(key, _ALLOWED) for key in extra if key not in _ALLOWED]
    section = extra.get("zero_optimization", {})
    if not isinstance(section, Mapping):
        return [*found, f"zero_optimization must be a section of settings, not {section!r}"]
    return found + [_why(f"zero_optimization.{key}", _ALLOWED_ZERO) for key in section if key not in _ALLOWED_ZERO]


def settings(
    extra: Mapping[str, Any],
    *,
    ranks: int,
    stage: int,
    precision: Precision,
    micro_batch: int,
    accumulation: int,
    grad_clip: float,
) -> dict[str, Any]:
    """The config for ``deepspeed.initialize``: ``extra`` (without faults) beneath ours."""
    zero: dict[str, Any] = {
        "stage": stage,
        "round_robin_gradients": False,
        "memory_efficient_linear": False,
    }
    config: dict[str, Any] = {
        **extra,
        "train_batch_size": micro_batch * accumulation * ranks,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": grad_clip,  # DeepSpeed's own default is 1
        "steps_per_print": 1 << 60,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {**extra.get("zero_optimization", {}), **zero},
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
        # Under ZeRO-0 DeepSpeed refuses to accumulate in another dtype; config.py allows no accumulation there.
        config["data_types"] = {"grad_accum_dtype": "fp32" if stage else "bf16"}
        config["communication_data_type"] = "fp32"
    return config


def frozen_settings(extra: Mapping[str, Any], *, precision: Precision) -> dict[str, Any]:
    """The config of a ZeRO-3 module that is only read, such as the teacher: no optimiser, no batch of its own."""
    ours = settings(extra, ranks=1, stage=3, precision=precision, micro_batch=1, accumulation=1, grad_clip=0.0)
    return {key: value for key, value in ours.items() if key not in ("train_batch_size", "data_types")}


def _why(key: str, allowed: set[str]) -> str:
    if key in _REFUSED:
        return f"{key} cannot be set: {_REFUSED[key]}"
    return f"{key} is not among the settings known to keep the teacher exact: {', '.join(sorted(allowed))}"
