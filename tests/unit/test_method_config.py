"""The keys of the method and of training: every fault in its words, and what is accepted."""

from pathlib import Path
from typing import Any

import pytest

from configs import ConfigError, dump, validate
from trainer.data.config import Data
from trainer.engine.config import Train
from trainer.losses.config import loss_section
from trainer.losses.prototype_head import PrototypeConfig
from trainer.losses.registry import LOSSES
from trainer.run import world_size
from trainer.run.config import TrainConfig
from trainer.views.config import Views

MINIMAL = {"run": {"dir": "r"}, "data": {"uri": "d"}, "train": {"steps": 1}}


def config(changes: dict[str, Any]) -> TrainConfig:
    """The smallest config, with changes by dotted key."""
    values: dict[str, Any] = {name: dict(section) for name, section in MINIMAL.items()}
    for key, value in changes.items():
        node = values
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return validate(TrainConfig, values, source="c.yaml")


WEIGHTLESS = {f"loss.{name}.weight": 0.0 for name in LOSSES}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"views.student.operations": {"rotate": 3, "flip": 1, "shift": 2}},
            "views.student.operations: unknown flip, rotate; must be of deletion, insertion, neighbour, "
            "shift",
        ),
        (
            {"views.teacher.operations": {"shift": 1001}},
            "views.teacher.operations.shift: input should be less than or equal to 1000 (given 1001)",
        ),
        (
            {"views.student.substitution": 1.5},
            "views.student.substitution: input should be less than or equal to 1 (given 1.5)",
        ),
        (
            {"views.student.noise": -0.1},
            "views.student.noise: input should be greater than or equal to 0 (given -0.1)",
        ),
        ({"views.masking.rate": 0.0}, "views.masking.rate: input should be greater than 0 (given 0.0)"),
        ({"views.masking.rate": 1.0}, "views.masking.rate: input should be less than 1 (given 1.0)"),
        (
            {"views.masking.mask_share": 0.8, "views.masking.random_share": 0.3},
            "views.masking: mask_share 0.8 and random_share 0.3 exceed 1 together",
        ),
        (
            {"views.crops.number": 33},
            "views.crops.number: input should be less than or equal to 32 (given 33)",
        ),
        (
            {"views.crops.length": 15},
            "views.crops.length: input should be greater than or equal to 16 (given 15)",
        ),
        (
            {"views.crops.operations": {"turn": 1}},
            "views.crops.operations: unknown turn; must be of deletion, insertion, neighbour, shift",
        ),
        (
            {"views.teacher.noise": 0.1},
            "views.teacher.noise: only the student's whole windows are noisy; set views.student.noise",
        ),
        (
            {"views.crops.noise": 0.1},
            "views.crops.noise: only the student's whole windows are noisy; set views.student.noise",
        ),
        (
            {"views.crops.number": 2, "views.crops.length": 1000},
            "views.crops.length: 1000 must be below data.length 1000",
        ),
        (
            {
                "views.crops.number": 2,
                "views.crops.length": 64,
                "data.length": [{"from_step": 0, "length": 64}, {"from_step": 9, "length": 1000}],
            },
            "views.crops.length: 64 must be below data.length 64",
        ),
        (
            {"views.crops.number": 1, "loss.distill.weight": 0.0},
            "views.crops.number: only loss.distill reads local windows, and its weight is 0",
        ),
        (
            WEIGHTLESS,
            "loss: every loss has weight 0; at least one of mlm, distill, patch, contrastive, koleo, vicreg, "
            "sigreg must be above 0",
        ),
        (
            {"loss.mlm.weight": -1.0},
            "loss.mlm.weight: input should be greater than or equal to 0 (given -1.0)",
        ),
        (
            {"loss.mlm.soft_weight": 1.1},
            "loss.mlm.soft_weight: input should be less than or equal to 1 (given 1.1)",
        ),
        (
            {"loss.distill.student_temperature": 0.0},
            "loss.distill.student_temperature: input should be greater than 0 (given 0.0)",
        ),
        (
            {"loss.distill.balance": "center"},
            "loss.distill.balance: input should be 'centring', 'sinkhorn' or 'none' (given 'center')",
        ),
        (
            {"loss.patch.centre_momentum": 1.0},
            "loss.patch.centre_momentum: input should be less than 1 (given 1.0)",
        ),
        (
            {"loss.patch.sinkhorn_iterations": 0},
            "loss.patch.sinkhorn_iterations: input should be greater than or equal to 1 (given 0)",
        ),
        ({"loss.patch.pairs": 0}, "loss.patch.pairs: input should be greater than or equal to 1 (given 0)"),
        (
            {"loss.patch.weight": 1.0, "views.masking.mask_share": 0.0},
            "loss.patch.weight: only hidden letters are compared, and views.masking.mask_share is 0",
        ),
        (
            {"loss.contrastive.temperature": 0.05, "loss.contrastive.max_scale": 10.0},
            "loss.contrastive: temperature 0.05 is a scale of 20, but max_scale is 10",
        ),
        (
            {"loss.contrastive.variant": "fast"},
            "loss.contrastive.variant: input should be 'lse', 'ring' or 'ref' (given 'fast')",
        ),
        (
            {"loss.contrastive.keys": "both"},
            "loss.contrastive.keys: input should be 'teacher' or 'student' (given 'both')",
        ),
        (
            {"loss.contrastive.weight": 1.0, "loss.contrastive.keys": "student"},
            "loss.contrastive.keys: student keys need views.symmetric: true; or use the teacher's",
        ),
        (
            {"loss.distill.balance": "none", "loss.distill.centre_bottleneck": True},
            "loss.distill: balance none takes no mean off, and centre_bottleneck true wants one taken off; "
            "use balance centring or sinkhorn",
        ),
        (
            {"loss.distill.teacher_temperature_start": 0.07},
            "loss.distill: teacher_temperature_start 0.07 and teacher_temperature_warmup 0 belong "
            "together; give both, or neither",
        ),
        (
            {"loss.patch.teacher_temperature_warmup": 0.1},
            "loss.patch: teacher_temperature_start null and teacher_temperature_warmup 0.1 belong "
            "together; give both, or neither",
        ),
        (
            {"loss.sigreg.weight": 1.0, "loss.sigreg.target": "student"},
            "loss.sigreg.target: the student's own other view needs views.symmetric: true; or use the "
            "teacher's",
        ),
        (
            {"loss.sigreg.weight": 1.0, "train.global_batch": 1},
            "train.global_batch: 1 must be at least 2 for loss.sigreg, which compares the rows of a batch "
            "with each other; or set loss.sigreg.weight to 0",
        ),
        (
            {"loss.vicreg.variance": -1.0},
            "loss.vicreg.variance: input should be greater than or equal to 0 (given -1.0)",
        ),
        ({"loss.koleo.wieght": 1.0}, "loss.koleo.wieght: unknown key, did you mean 'weight'?"),
        (
            {"loss.koleo.weight": 0.1, "train.global_batch": 1},
            "train.global_batch: 1 must be at least 2 for loss.koleo, which compares the rows of a batch "
            "with each other; or "
            "set loss.koleo.weight to 0",
        ),
        (
            {"loss.vicreg.weight": 1.0, "train.global_batch": 1},
            "train.global_batch: 1 must be at least 2 for loss.vicreg, which compares the rows of a batch "
            "with each other; or "
            "set loss.vicreg.weight to 0",
        ),
        ({"train.zero_stage": 4}, "train.zero_stage: input should be less than or equal to 3 (given 4)"),
        ({"train.precision": "fp16"}, "train.precision: input should be 'fp32' or 'bf16' (given 'fp16')"),
        ({"train.max_skipped": 0}, "train.max_skipped: input should be greater than or equal to 1 (given 0)"),
        ({"health.patience": 0}, "health.patience: input should be greater than or equal to 1 (given 0)"),
        ({"health.every": -1}, "health.every: input should be greater than or equal to 0 (given -1)"),
        ({"health.on_collapse": "cry"}, "health.on_collapse: input should be 'warn' or 'stop' (given 'cry')"),
        ({"model.name": "bert"}, "model.name: must be one of dilated-conv, findna (given 'bert')"),
        ({"model.norm": "batch"}, "model.norm: input should be 'none', 'layer' or 'rms' (given 'batch')"),
        ({"run.seed": -1}, "run.seed: input should be greater than or equal to 0 (given -1)"),
        ({"data.uri": ""}, "data.uri: must be a URI or a list of {uri, weight} (given '')"),
        ({"data.uri": []}, "data.uri: at least one dataset is needed (given [])"),
        (
            {"data.uri": [{"uri": "a"}, {"uri": "b"}, {"uri": "a", "weight": 2}]},
            "data.uri: given twice: a; give each dataset once, with the sum of its weights",
        ),
        (
            {"data.uri": [{"uri": "a", "weight": 0}]},
            "data.uri.0.weight: input should be greater than 0 (given 0)",
        ),
        (
            {"data.length": 15},
            "data.length: must be an integer of at least 16 or a list of {from_step, length} (given 15)",
        ),
        (
            {"data.length": True},
            "data.length: must be an integer of at least 16 or a list of {from_step, length}",
        ),
        ({"data.length": []}, "data.length: the first from_step must be 0, not missing (given [])"),
        (
            {"data.length": [{"from_step": 3, "length": 64}]},
            "data.length: the first from_step must be 0, not 3",
        ),
        (
            {
                "data.length": [
                    {"from_step": 0, "length": 64},
                    {"from_step": 9, "length": 80},
                    {"from_step": 9, "length": 96},
                ]
            },
            "data.length: from_step must increase from entry to entry: 0, 9, 9",
        ),
        (
            {"train.compile": True},
            "train.compile: input should be 'off', 'default' or 'reduce-overhead' (given True)",
        ),
        (
            {"train.compile": "default", "train.zero_stage": 3},
            "train: compile default needs whole weights in the forward, which ZeRO-3 gathers module by "
            "module; use zero_stage 0 to 2, or compile off",
        ),
        (
            {
                "train.compile": "reduce-overhead",
                "train.deepspeed": {"flops_profiler": {"enabled": True}},
            },
            "train: compile reduce-overhead leaves no modules for deepspeed.flops_profiler to watch; use "
            "compile off, or leave the profiler out",
        ),
        ({"data.on_corrupt": "maybe"}, "data.on_corrupt: input should be 'fail' or 'skip' (given 'maybe')"),
    ],
)
def test_every_fault_is_a_sentence_with_its_key(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(changes)
    first, *faults = str(refused.value).split("\n  ")
    assert first == "c.yaml: 1 fault"
    (found,) = faults
    assert found == fault or found.startswith(f"{fault} (given "), found


def test_off_is_off_however_yaml_reads_it() -> None:
    assert config({"train.compile": False}).train.compile == "off"
    assert config({"train.compile": "off"}).train.compile == "off"
    assert config({"train.zero_stage": 3}).train.compile == "off"


def test_faults_between_sections_come_all_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        config(
            {
                "loss.contrastive.weight": 1.0,
                "loss.contrastive.keys": "student",
                "loss.distill.weight": 0.0,
                "views.crops.number": 1,
                "views.crops.length": 2000,
            }
        )
    assert str(refused.value) == (
        "c.yaml: 3 faults\n  loss.contrastive.keys: student keys need views.symmetric: true; or use the "
        "teacher's\n  "
        "views.crops.number: only loss.distill reads local windows, and its weight is 0\n  "
        "views.crops.length: 2000 must be below data.length 1000"
    )


def test_faults_of_sections_come_all_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        config(
            {
                "loss.mlm.weight": -1.0,
                "views.masking.rate": 2.0,
                "train.deepspeed": {"fp16": {}, "zero": 1},
                "data.length": 3,
            }
        )
    first, *faults = str(refused.value).split("\n  ")
    assert first == "c.yaml: 5 faults"
    assert [fault.split(":")[0] for fault in faults] == [
        "data.length",
        "views.masking.rate",
        "loss.mlm.weight",
        "train.deepspeed",
        "train.deepspeed",
    ]
    assert faults[3].startswith("train.deepspeed: fp16 cannot be set: set train.precision")
    assert faults[4].startswith("train.deepspeed: zero is not among the settings")


def test_what_the_losses_need_is_not_asked_of_losses_out_of_use() -> None:
    assert config({"loss.contrastive.keys": "student"}).loss.contrastive.keys == "student"
    assert config({"views.masking.mask_share": 0.0, "views.masking.random_share": 1.0}).loss.patch.weight == 0
    student = {"loss.contrastive.weight": 1.0, "loss.contrastive.keys": "student", "views.symmetric": True}
    assert config(student).loss.faults(Views(symmetric=True), global_batch=2) == []
    assert config({"views.crops.length": 2000}).views.crops.number == 0


def test_a_batch_of_one_row_or_two_is_enough_where_the_losses_allow_it() -> None:
    assert config({"train.global_batch": 1}).train.global_batch == 1
    both = {"loss.koleo.weight": 0.1, "loss.vicreg.weight": 1.0}
    assert config(both | {"train.global_batch": 2}).train.global_batch == 2
    with pytest.raises(
        ConfigError, match=r"koleo\.weight to 0\n  train\.global_batch: 1 must .* loss\.vicreg"
    ):
        config(both | {"train.global_batch": 1})


def test_weights_are_those_of_the_losses_in_use() -> None:
    assert loss_section().weights() == {"mlm": 1.0, "distill": 1.0}
    some = loss_section({"mlm": {"weight": 0}, "koleo": {"weight": 0.1}, "patch": {"weight": 2}})
    assert some.weights() == {"distill": 1.0, "patch": 2.0, "koleo": 0.1}


def test_defaults_of_the_prototype_losses() -> None:
    """The published temperatures; patch and distillation differ in what they are given, not in how they
    work."""
    distill, patch = loss_section().distill, loss_section().patch
    assert isinstance(distill, PrototypeConfig) and isinstance(patch, PrototypeConfig)
    for head in (distill, patch):
        assert (head.student_temperature, head.teacher_temperature, head.centre_momentum) == (0.1, 0.04, 0.9)
        assert (head.balance, head.sinkhorn_iterations) == ("centring", 3)
    assert (distill.weight, patch.weight) == (1.0, 0.0)


def test_short_forms_are_read_and_given_back_as_they_were() -> None:
    plain = config({})
    assert dump(plain)["data"]["uri"] == "d" and dump(plain)["data"]["length"] == 1000
    lengths = [{"from_step": 0, "length": 64}, {"from_step": 5, "length": 128}]
    mixed = config({"data.uri": [{"uri": "a"}, {"uri": "b", "weight": 2.0}], "data.length": lengths})
    assert mixed.data.last_length == 128
    assert dump(mixed)["data"]["length"] == lengths
    assert dump(mixed)["data"]["uri"] == [{"uri": "a", "weight": 1.0}, {"uri": "b", "weight": 2.0}]
    assert validate(TrainConfig, dump(mixed), source="again") == mixed
    assert Data.model_validate({"uri": "d", "cache_dir": "here"}).cache_folder == Path("here").absolute()
    assert Data.model_validate({"uri": "d"}).cache_folder.name == "blocks"


@pytest.mark.parametrize(
    ("train", "world", "micro", "accumulation"),
    [
        ({"global_batch": 48}, 4, 12, 1),
        ({"global_batch": 48, "micro_batch": 4}, 2, 4, 6),
        ({"global_batch": 48, "micro_batch": 48}, 1, 48, 1),
    ],
)
def test_micro_batch_and_accumulation_follow_the_number_of_ranks(
    train: dict[str, Any], world: int, micro: int, accumulation: int
) -> None:
    found = TrainConfig.model_validate(MINIMAL | {"train": {"steps": 1} | train})
    assert world_size.faults(found.train, lanes=found.data.lanes, world=world) == []
    assert found.train.rows_at_once(world) == micro
    assert found.train.accumulation(world) == accumulation


def test_schedule_ends_with_the_run_unless_it_is_told_otherwise() -> None:
    assert config({"train.steps": 7}).schedule_steps == 7
    assert config({"train.steps": 7, "train.schedule_steps": 70}).schedule_steps == 70
    assert Train(steps=1, deepspeed={"zero_optimization": {"overlap_comm": True}}).deepspeed


def test_the_flank_is_what_the_widest_of_the_views_in_use_reaches_into() -> None:
    student, teacher = {"operations": {"shift": 4}}, {"operations": {"deletion": 3, "insertion": 2}}
    crops = {"operations": {"deletion": 9}}
    assert Views.model_validate({"student": student, "teacher": teacher, "crops": crops}).flank == 5
    assert Views.model_validate({"student": student, "crops": crops | {"number": 1}}).flank == 9
    assert Views().flank == 0
