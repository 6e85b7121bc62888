"""DeepSpeed's settings: each refusal by name with its reason, what is let through, and that ours stand above
it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs import ConfigError, load
from trainer.engine import deepspeed_config
from trainer.engine.config import Train
from trainer.engine.deepspeed_config import EngineSettings, inference_config, training_config
from trainer.run.config import TrainConfig

NOT_FOLLOWED = "the teacher's shards do not follow it"
QUANTISED = "quantised weights are not the teacher's average"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("train_batch_size", 64, "set train.global_batch"),
        ("train_micro_batch_size_per_gpu", 8, "set train.micro_batch"),
        ("gradient_accumulation_steps", 2, "set train.micro_batch"),
        ("gradient_clipping", 1.0, "set train.grad_clip"),
        ("optimizer", {"type": "AdamW"}, "set train.lr, train.betas and train.weight_decay"),
        (
            "scheduler",
            {"type": "WarmupLR"},
            "set train.lr, train.warmup_fraction and train.final_lr_fraction",
        ),
        ("bf16", {"enabled": True}, "set train.precision"),
        ("fp16", {"enabled": True}, "set train.precision"),
        ("data_types", {"grad_accum_dtype": "bf16"}, "set train.precision"),
    ],
)
def test_what_has_a_key_of_ours_is_refused_with_that_key(key: str, value: Any, reason: str) -> None:
    assert deepspeed_config.faults({key: value}) == [f"{key} cannot be set: {reason}"]
    ours = [part.strip() for part in reason.removeprefix("set ").replace(" and ", ", ").split(",")]
    known = {f"train.{name}" for name in Train.model_fields}
    assert set(ours) <= known, "a reason names a key that there is not"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("stage", 2, "set train.zero_stage"),
        ("round_robin_gradients", True, "it deals the fp32 masters out in another order than the weights"),
        ("zero_hpz_partition_size", 2, f"hpZ keeps a second partition of the weights; {NOT_FOLLOWED}"),
        ("mics_shard_size", 2, f"MiCS partitions within sub-groups; {NOT_FOLLOWED}"),
        ("zero_quantized_weights", True, QUANTISED),
        ("zero_quantized_nontrainable_weights", True, QUANTISED),
        ("zero_quantized_gradients", True, "quantised gradients differ with the number of ranks"),
        ("offload_param", {"device": "nvme"}, f"parameters on NVMe or in host memory: {NOT_FOLLOWED}"),
        ("offload_optimizer", {"device": "cpu"}, f"fp32 masters on NVMe or in host memory: {NOT_FOLLOWED}"),
        ("memory_efficient_linear", True, "it replaces F.linear in the whole process and rounds differently"),
    ],
)
def test_what_would_make_the_teacher_wrong_is_refused_with_the_reason(
    key: str, value: Any, reason: str
) -> None:
    assert deepspeed_config.faults({"zero_optimization": {key: value}}) == [
        f"zero_optimization.{key} cannot be set: {reason}"
    ]


def test_every_refusal_of_the_module_is_read_above() -> None:
    marks = [
        mark
        for test in (
            test_what_has_a_key_of_ours_is_refused_with_that_key,
            test_what_would_make_the_teacher_wrong_is_refused_with_the_reason,
        )
        for mark in test.pytestmark
    ]
    ours, theirs = ({row[0] for row in mark.args[1]} for mark in marks)
    assert ours | {f"zero_optimization.{key}" for key in theirs} == set(deepspeed_config._REFUSED)


def test_a_setting_that_nobody_has_tried_is_refused_with_those_that_are_known() -> None:
    (fault,) = deepspeed_config.faults({"compression_training": {}})
    assert fault == (
        "compression_training is not among the settings known to keep the teacher exact: comms_logger, "
        "flops_profiler, memory_breakdown, wall_clock_breakdown, zero_optimization"
    )
    (fault,) = deepspeed_config.faults({"zero_optimization": {"overlap_com": True}})
    assert fault.startswith(
        "zero_optimization.overlap_com is not among the settings known to keep the teacher exact: "
        "allgather_bucket_size, contiguous_gradients, "
    )
    assert "overlap_comm" in fault


def test_all_faults_at_once_and_a_section_that_is_none() -> None:
    found = deepspeed_config.faults(
        {"fp16": {}, "zero_optimization": {"stage": 1, "reduce_scatter": True, "cpu_offload": True}}
    )
    assert [fault.split()[0] for fault in found] == [
        "fp16",
        "zero_optimization.stage",
        "zero_optimization.cpu_offload",
    ]
    assert deepspeed_config.faults({"bf16": {}, "zero_optimization": 3}) == [
        "bf16 cannot be set: set train.precision",
        "zero_optimization must be a section of settings, not 3",
    ]
    with pytest.raises(
        ValueError, match=r"bf16 cannot be set: set train\.precision\nzero_optimization must be a sec"
    ):
        Train.model_validate({"steps": 1, "deepspeed": {"bf16": {}, "zero_optimization": 3}})


SWITCH, SECTION = "true or false", "a section of settings"
NAMES = "a list of names of collectives, such as [all_gather_into_tensor]"
LEAST = {least: f"a whole number of at least {least} and below 2^63" for least in (-1, 0, 1)}
LEAST[2] = "an even number of at least 2 and below 2^63"
MINIMUM = {
    "zero_optimization": {
        "allgather_bucket_size": 2,
        "reduce_bucket_size": 1,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_model_persistence_threshold": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "sub_group_size": 0,
    },
    "flops_profiler": {"module_depth": -1, "profile_step": 1, "top_modules": 1},
}
SWITCHES = {
    "zero_optimization": [
        "contiguous_gradients",
        "ignore_unused_parameters",
        "overlap_comm",
        "reduce_scatter",
        "use_multi_rank_bucket_allreduce",
    ],
    "comms_logger": ["debug", "enabled", "prof_all", "verbose"],
    "flops_profiler": ["detailed", "enabled"],
}


@pytest.mark.parametrize(
    ("section", "name", "least"),
    [(section, name, least) for section, of in MINIMUM.items() for name, least in of.items()],
)
def test_numbers_have_a_least_value(section: str, name: str, least: int) -> None:
    for good in (least, float(least), least + 2, 5e8, 1e18):
        assert deepspeed_config.faults({section: {name: good}}) == [], good
    no_numbers = (True, False, None, "7", "auto", [1], {"a": 1})
    for bad in (least - 1, least + 0.5, 1 << 63, 1e30, float("inf"), float("nan"), *no_numbers):
        assert deepspeed_config.faults({section: {name: bad}}) == [
            f"{section}.{name} must be {LEAST[least]}, not {bad!r}"
        ]


def test_an_odd_bucket_to_gather_in_is_refused() -> None:
    (fault,) = deepspeed_config.faults({"zero_optimization": {"allgather_bucket_size": 7}})
    assert fault == f"zero_optimization.allgather_bucket_size must be {LEAST[2]}, not 7"


@pytest.mark.parametrize(
    ("section", "name"),
    [
        *((section, name) for section, of in SWITCHES.items() for name in of),
        (None, "memory_breakdown"),
        (None, "wall_clock_breakdown"),
    ],
)
def test_switches_are_true_or_false(section: str | None, name: str) -> None:
    def found(value: Any) -> list[str]:
        return deepspeed_config.faults({section: {name: value}} if section else {name: value})

    assert found(True) == found(False) == []
    for bad in ("maybe", "true", 1, 0, None, [], {}):
        assert found(bad) == [f"{section + '.' if section else ''}{name} must be {SWITCH}, not {bad!r}"]


def test_names_of_collectives_are_a_list() -> None:
    assert deepspeed_config.faults({"comms_logger": {"prof_ops": []}}) == []
    assert deepspeed_config.faults({"comms_logger": {"prof_ops": ["all_reduce", "barrier"]}}) == []
    for bad in ("all_reduce", [1], ["all_reduce", None], {"all_reduce": True}, 3):
        (fault,) = deepspeed_config.faults({"comms_logger": {"prof_ops": bad}})
        assert fault == f"comms_logger.prof_ops must be {NAMES}, not {bad!r}"


@pytest.mark.parametrize("section", ["comms_logger", "flops_profiler", "zero_optimization"])
def test_sections_are_mappings_of_known_settings(section: str) -> None:
    for bad in (3, True, None, "on", [{"enabled": True}]):
        assert deepspeed_config.faults({section: bad}) == [f"{section} must be {SECTION}, not {bad!r}"]
    (fault,) = deepspeed_config.faults({section: {"enabeld": True}})
    known = ", ".join(sorted(deepspeed_config._SECTIONS[section]))
    assert fault == f"{section}.enabeld is not among the settings known to keep the teacher exact: {known}"


@pytest.mark.parametrize(
    "key",
    [
        "zero_optimization.stage3_module_granularity_threshold",
        "flops_profiler.output_file",
        "flops_profiler.recompute_fwd_factor",
    ],
)
def test_what_deepspeed_has_and_cannot_run_here_is_not_known(key: str) -> None:
    section, name = key.split(".")
    (fault,) = deepspeed_config.faults({section: {name: 1}})
    assert fault.startswith(f"{key} is not among the settings known to keep the teacher exact: ")


def test_every_known_setting_is_tried_above() -> None:
    numbers, switches = (
        {f"{section}.{name}" for section, of in table.items() for name in of} for table in (MINIMUM, SWITCHES)
    )
    known = {f"{section}.{name}" for section, of in deepspeed_config._SECTIONS.items() for name in of}
    assert numbers | switches | {"comms_logger.prof_ops"} == known
    assert deepspeed_config._SWITCHES.keys() == {"memory_breakdown", "wall_clock_breakdown"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


@given(
    st.sampled_from(
        [f"{section}.{name}" for section, of in deepspeed_config._SECTIONS.items() for name in of]
    ),
    JSON,
)
def test_a_value_is_accepted_or_answered_in_one_line_with_its_key(key: str, value: Any) -> None:
    section, name = key.split(".")
    for fault in deepspeed_config.faults({section: {name: value}}):
        assert fault.startswith(f"{key} must be ") and fault.endswith(f", not {value!r}")
        assert "\n" not in fault


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("comms_logger=3", f"comms_logger must be {SECTION}, not 3"),
        (
            "zero_optimization.allgather_bucket_size=7",
            f"zero_optimization.allgather_bucket_size must be {LEAST[2]}, not 7",
        ),
        (
            "zero_optimization.overlap_comm=maybe",
            f"zero_optimization.overlap_comm must be {SWITCH}, not 'maybe'",
        ),
        (
            "zero_optimization.reduce_bucket_size=-5",
            f"zero_optimization.reduce_bucket_size must be {LEAST[1]}, not -5",
        ),
        ("flops_profiler={enabled: 1}", f"flops_profiler.enabled must be {SWITCH}, not 1"),
        ("memory_breakdown=3", f"memory_breakdown must be {SWITCH}, not 3"),
    ],
)
def test_a_wrong_value_is_a_fault_of_the_config(tmp_path: Path, override: str, fault: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("{run: {dir: r}, data: {uri: d}, train: {steps: 1}}")
    with pytest.raises(ConfigError) as refused:
        load(TrainConfig, file, [f"train.deepspeed.{override}"])
    assert str(refused.value) == f"{file}: 1 fault\n  train.deepspeed: {fault}"


def test_numbers_may_be_written_as_in_deepspeeds_documents(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("{run: {dir: r}, data: {uri: d}, train: {steps: 1}}")
    config = load(TrainConfig, file, ["train.deepspeed.zero_optimization.reduce_bucket_size=5e8"])
    assert config.train.deepspeed == {"zero_optimization": {"reduce_bucket_size": 5e8}}


KNOWN = {
    "zero_optimization": {
        "overlap_comm": False,
        "reduce_bucket_size": 1000,
        "stage3_prefetch_bucket_size": 0,
    },
    "wall_clock_breakdown": True,
    "comms_logger": {"enabled": True},
}


def settings(**changes: Any) -> EngineSettings:
    values: dict[str, Any] = {
        "zero_stage": 1,
        "precision": "fp32",
        "micro_batch": 6,
        "accumulation": 2,
        "weight_decay": 0.1,
        "betas": (0.9, 0.99),
        "grad_clip": 0.5,
    }
    return EngineSettings(**(values | changes))


def test_what_is_known_reaches_deepspeed_beneath_ours() -> None:
    assert deepspeed_config.faults(KNOWN) == []
    config = training_config(settings(zero_stage=3, deepspeed=KNOWN), ranks=4)
    assert config["wall_clock_breakdown"] is True
    assert config["comms_logger"] == {"enabled": True}
    assert config["zero_optimization"] == {
        "overlap_comm": False,
        "reduce_bucket_size": 1000,
        "stage3_prefetch_bucket_size": 0,
        "stage": 3,
        "round_robin_gradients": False,
        "memory_efficient_linear": False,
    }
    assert KNOWN["zero_optimization"] == {
        "overlap_comm": False,
        "reduce_bucket_size": 1000,
        "stage3_prefetch_bucket_size": 0,
    }, "a user's settings were changed"


@given(
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from(["fp32", "bf16"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0, 5),
)
def test_settings_say_what_was_asked(
    stage: int, precision: str, ranks: int, micro: int, accumulation: int, clip: float
) -> None:
    asked = settings(
        zero_stage=stage,
        precision=precision,
        micro_batch=micro,
        accumulation=accumulation,
        grad_clip=clip,
    )
    config = training_config(asked, ranks=ranks)
    assert asked.compute_dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
    assert config["train_batch_size"] == ranks * micro * accumulation
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (
        micro,
        accumulation,
    )
    assert config["gradient_clipping"] == clip, "DeepSpeed's default would be 1"
    assert config["zero_optimization"]["stage"] == stage
    assert not any(
        config["zero_optimization"][key] for key in ("round_robin_gradients", "memory_efficient_linear")
    )
    if precision == "fp32":
        assert not {"bf16", "fp16", "data_types", "communication_data_type"} & config.keys()
    else:
        assert config["bf16"] == {"enabled": True}
        assert config["communication_data_type"] == "fp32"
        assert config["data_types"] == {"grad_accum_dtype": "fp32" if stage else "bf16"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_module_that_is_only_read_has_neither_batch_nor_accumulation(
    precision: deepspeed_config.Precision,
) -> None:
    config = inference_config(settings(precision=precision, deepspeed=KNOWN))
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["zero_optimization"]["memory_efficient_linear"] is False
    assert "train_batch_size" not in config and "data_types" not in config
    assert ("bf16" in config) == (precision == "bf16")
