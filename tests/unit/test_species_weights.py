"""data_prep.dataset.weights: shares of species by size and by clade, and what they may not be."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.config import DataConfig
from data_prep.dataset.build import build
from data_prep.dataset.weights import weights
from data_prep.shards import Source

SIZES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1000, 10**10), min_size=1)


def source(name: str, **of: Any) -> Source:
    return Source(name, "0" * 64, {"c": 1}, 0, {"weights": of} if of else {}, 1.0)


def shares(found: dict[str, float], bp: dict[str, int]) -> dict[str, float]:
    total = sum(found[name] * bp[name] for name in found)
    return {name: found[name] * bp[name] / total for name in found}


@given(bp=SIZES, alpha=st.floats(0, 1), given_weights=st.lists(st.floats(0.1, 10), min_size=8, max_size=8))
def test_by_size(bp: dict[str, int], alpha: float, given_weights: list[float]) -> None:
    own = dict(zip("abcdefgh", given_weights, strict=True))
    found = weights([source(name, given=own[name], alpha=alpha) for name in bp], Counter(bp))
    wanted = {name: own[name] * bp[name] ** alpha for name in bp}
    total = sum(wanted.values())
    for name, share in shares(found, bp).items():
        assert share == pytest.approx(wanted[name] / total, rel=1e-6)
    mean = sum(found[name] * bp[name] for name in bp) / sum(bp.values())
    assert mean == pytest.approx(1, rel=1e-6), "an epoch is as long as before"


@given(bp=SIZES, alpha=st.floats(0, 1))
def test_by_clade(bp: dict[str, int], alpha: float) -> None:
    clade_of = {name: "xyz"[ord(name) % 3] for name in bp}
    asked = [source(name, given=1.0, alpha=alpha, clade=clade_of[name]) for name in bp]
    by_clade = Counter[str]()
    for name, share in shares(weights(asked, Counter(bp)), bp).items():
        by_clade[clade_of[name]] += share  # type: ignore[assignment]
    for share in by_clade.values():
        assert share == pytest.approx(1 / len(by_clade), rel=1e-6)


def test_as_given_nothing_is_asked_and_what_train_has_not_has_no_weight() -> None:
    assert weights([source("a")], Counter({"a": 9})) == {}
    assert weights([source("a", given=1.0, alpha=1.0)], Counter()) == {}


def config(tmp_path: Path, clades: dict[str, str | None], **changes: Any) -> DataConfig:
    rng = np.random.default_rng(0)
    references = []
    for number, (name, clade) in enumerate(clades.items(), 1):
        letters = "".join(rng.choice(list("ACGT"), 2048 * number))
        (tmp_path / f"{name}.fa").write_text(f">c\n{letters}\n>v\n{letters[:1024]}\n")
        references.append({"name": name, "uri": str(tmp_path / f"{name}.fa"), "clade": clade})
    values = {"references": references, "output": str(tmp_path / "d"), "block_bp": 1024, "shard_bp": 4096}
    return DataConfig.model_validate(values | {"split": {"val": ["v"], "leakage": "off"}} | changes)


@pytest.mark.usefixtures("local_ray")
def test_a_build_writes_them_and_the_same_build_has_nothing_to_do(tmp_path: Path) -> None:
    clades = {"one": "mammals/bats", "two": "mammals/cows", "three": "fish"}
    wanted = config(tmp_path, clades, weights={"by": "clade", "alpha": 0})
    built = build(wanted)
    found = {source.name: source.weight for source in built.manifest.sources}
    # 2, 4 and 6 kbp: each mammal a quarter of 12 kbp, the fish a half.
    assert found == {"one": 1.5, "two": 0.75, "three": 1.0}
    assert not build(wanted).fresh
    by_two = config(tmp_path, clades, weights={"by": "clade", "depth": 2}, grow=True)
    grown = build(by_two)
    assert grown.grown and grown.grown.kept_shards == sum(map(len, grown.manifest.shards.values()))
    assert [source.weight for source in grown.manifest.sources] == [2.0, 1.0, 0.666666667]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValidationError, match=r"weights.by clade wants a clade of each reference; none is given of one"
    ):
        config(tmp_path, {"one": None, "two": "fish"}, weights={"by": "clade"})
    with pytest.raises(ValidationError, match=r"must be names of letters, .* with / between them"):
        config(tmp_path, {"one": "fish/"})
