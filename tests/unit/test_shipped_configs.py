"""Every shipped config is read by its own model, and says what it promises."""

import os
from pathlib import Path

import pytest

import configs
from cluster.launch.config import ClusterConfig
from data_prep.config import DataConfig
from trainer.evaluation.tasks.config import TaskConfig
from trainer.evaluation.tasks.rows.data import load
from trainer.run import world_size
from trainer.run.config import TrainConfig
from trainer.study.config import StudyConfig
from trainer.study.plan import make_plan

FOLDER = Path(configs.__file__).parent
MODELS = {
    "data": DataConfig,
    "train": TrainConfig,
    "tasks": TaskConfig,
    "cluster": ClusterConfig,
    "studies": StudyConfig,
}
OTHERS = {"rayjob", "ray-onprem", "ray-aws"}  # for Kubernetes and Ray itself: test_cluster_files.py
FILES = sorted(path for path in FOLDER.glob("*/*.yaml") if path.stem not in OTHERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_config_is_read(path: Path) -> None:
    configs.load(MODELS[path.parent.name], path)


@pytest.mark.parametrize("name", ["ablation-small", "ablation-gpu", "findna"])
def test_shipped_study_can_be_planned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four arms at the same FLOPs within a step, on all shipped tasks; scratch is of their network."""
    monkeypatch.chdir(FOLDER.parent)
    plan = make_plan(configs.load(StudyConfig, FOLDER / "studies" / f"{name}.yaml"))
    arms = ["masked", "distilled", "both"]
    assert list(dict.fromkeys(one.arm for one in plan.pretrainings)) == arms
    assert plan.scratch == {"scratch": "masked"}
    assert {task.name for task in plan.task_configs} == ROWS.keys()
    for one in plan.pretrainings:
        assert 1 - 1 / one.cost.steps < one.cost.flops / plan.config.pretrain.flops <= 1
        assert (one.config.loss.mlm.weight > 0) == (one.arm != "distilled")


def test_the_contract_names_are_there() -> None:
    tasks = {"tf_0", "tf_3", "mouse_0", "mouse_4", "prom_300_tata", "prom_core_all", "splice", "cohn"}
    assert tasks <= {path.stem for path in FILES if path.parent.name == "tasks"}
    assert {"demo", "findna", "findna-plus"} <= {path.stem for path in FILES if path.parent.name == "train"}


def test_demo_distils_and_has_a_batch_that_1_to_4_ranks_divide() -> None:
    demo = configs.load(TrainConfig, FOLDER / "train" / "demo.yaml")
    assert demo.loss.weights().keys() == {"mlm", "patch"}
    assert all(
        world_size.faults(demo.train, lanes=demo.data.lanes, world=world) == [] for world in (1, 2, 3, 4)
    )


def test_findna_is_the_published_method() -> None:
    findna = configs.load(TrainConfig, FOLDER / "train" / "findna.yaml")
    assert findna.loss.weights() == {"mlm": 1.0, "distill": 1.0}
    assert not findna.views.symmetric
    assert findna.train.steps == 30 * 100_000 // 64
    assert (findna.ema.momentum, findna.ema.momentum_end) == (0.996, 1.0)
    assert (findna.train.lr, findna.train.weight_decay, findna.train.grad_clip) == (3e-4, 3e-4, 0.5)
    assert (findna.views.student.noise, findna.views.student.reverse_complement) == (0.2, 0.5)
    assert findna.views.teacher.operations == {"deletion": 20, "insertion": 20, "shift": 20}


def test_findna_plus_adds_what_it_says_to_findna() -> None:
    findna, plus = (
        configs.load(TrainConfig, FOLDER / "train" / f"{name}.yaml") for name in ("findna", "findna-plus")
    )
    assert plus.loss.weights().keys() == {"mlm", "distill", "patch", "contrastive", "koleo"}
    assert plus.loss.koleo.weight == 0.1
    assert (plus.loss.distill.balance, plus.loss.patch.balance) == ("sinkhorn", "sinkhorn")
    assert plus.loss.contrastive.mask_same_place
    assert plus.loss.mlm.soft_weight == 0.1
    assert plus.views.symmetric
    assert plus.views.crops.number == 4
    assert plus.train.precision == "bf16"
    # The same network but for its norm, the same views and mask, the same windows, an average over as many of
    # them.
    assert plus.model == findna.model.model_copy(update={"norm": "layer"})
    for name in ("student", "teacher", "masking"):
        assert getattr(plus.views, name) == getattr(findna.views, name)
    windows = [config.train.steps * config.train.global_batch for config in (findna, plus)]
    assert windows[0] == 3_000_000 <= windows[1] < windows[0] + plus.train.global_batch
    factor = plus.train.global_batch / findna.train.global_batch
    assert plus.ema.momentum == pytest.approx(findna.ema.momentum**factor, abs=5e-4)
    assert plus.train.lr == pytest.approx(findna.train.lr * factor**0.5, rel=0.06)


@pytest.mark.parametrize(
    ("world", "sentence"),
    [
        (
            5,
            "train.global_batch 48 and data.lanes 48 must both be divisible by the 5 processes; numbers of "
            "processes that "
            "work: 1, 2, 3, 4, 6, 8, 12, 16, 24, 48",
        ),
        (32, "must both be divisible by the 32 processes"),
    ],
)
def test_world_that_does_not_divide_is_refused_with_the_sizes_that_work(world: int, sentence: str) -> None:
    demo = configs.load(TrainConfig, FOLDER / "train" / "demo.yaml")
    (fault,) = world_size.faults(demo.train, lanes=demo.data.lanes, world=world)
    assert sentence in fault


def test_bf16_accumulation_at_stage_0_is_refused() -> None:
    overrides = ["train.precision=bf16", "train.zero_stage=0", "train.micro_batch=12"]
    demo = configs.load(TrainConfig, FOLDER / "train" / "demo.yaml", overrides)
    (fault,) = world_size.faults(demo.train, lanes=demo.data.lanes, world=2)
    assert fault == (
        "train.zero_stage: DeepSpeed accumulates bf16 gradients in bf16 at stage 0; use stage 1 or 2, "
        "or train.micro_batch 24"
    )


DATA = Path(os.environ.get("DNA_DATA", "../shared/data")).absolute()
ROWS = {  # of train, dev and test, before rows that a later split has are left out
    "4mC_S.cerevisiae": (1_782, 198, 1_978),
    "6mA_D.melanogaster": (10_072, 1_120, 11_190),
    "6mA_S.cerevisiae": (3_408, 378, 3_786),
    "H3K4me1": (2_851, 317, 3_168),
    "H3K4me2": (2_762, 307, 3_069),
    "H4": (1_315, 146, 1_461),
    "cohn": (5_540, 696, 712),
    "mouse_0": (6_478, 810, 810),
    "mouse_4": (15_064, 1_883, 1_883),
    "prom_300_tata": (4_904, 613, 613),
    "prom_core_all": (47_356, 5_920, 5_920),
    "prom_core_notata": (42_452, 5_307, 5_307),
    "prom_core_tata": (4_904, 613, 613),
    "splice": (4_087, 475, 4_562),
    "tf_0": (32_378, 1_000, 1_000),
    "tf_3": (27_294, 1_000, 1_000),
}


def test_every_task_is_listed_here_and_in_the_docs() -> None:
    shipped = {path.stem for path in FILES if path.parent.name == "tasks"} - {"synthetic"}
    assert shipped == ROWS.keys()
    page = (FOLDER.parent / "docs" / "tasks.md").read_text()
    assert [name for name in shipped if f"`{name}`" not in page] == []


@pytest.mark.skipif(not (DATA / "downstream").is_dir(), reason=f"no data in {DATA} (DNA_DATA)")
@pytest.mark.parametrize("name", ROWS)
def test_a_task_has_its_rows(name: str) -> None:
    data = load(configs.load(TaskConfig, FOLDER / "tasks" / f"{name}.yaml"))
    found = [len(split) + data.dropped.get(split.role, 0) for split in data.splits]
    assert tuple(found) == ROWS[name]
