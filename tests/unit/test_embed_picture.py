"""The picture of trainer.embed: components as numpy finds them, colours by a column, points by a stride."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests import embedded
from tests.embedded import embed, letters_of
from trainer.core import drawing
from trainer.inference.embed import picture
from trainer.inference.embed.picture import Points, groups, principal
from trainer.inference.embed.rows import Rows


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    vectors_PV = rng.normal(size=(50, 12)) * np.geomspace(8, 0.1, 12) + 3
    place_P2, share_2 = principal(vectors_PV)
    centred_PV = vectors_PV - vectors_PV.mean(0)
    left, values, _ = np.linalg.svd(centred_PV, full_matrices=False)
    np.testing.assert_allclose(np.abs(place_P2), np.abs(left[:, :2] * values[:2]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(share_2, values[:2] ** 2 / (values**2).sum(), rtol=1e-6)
    assert principal(vectors_PV)[0].tobytes() == place_P2.tobytes()


@pytest.mark.parametrize("shape", [(1, 5), (4, 1), (1, 1), (2, 2)])
def test_few_points_or_numbers_have_two_components_all_the_same(shape: tuple[int, int]) -> None:
    place_P2, share_2 = principal(np.arange(np.prod(shape), dtype=float).reshape(shape) ** 2)
    assert place_P2.shape == (shape[0], 2)
    assert np.isfinite(place_P2).all() and np.isfinite(share_2).all()


@pytest.mark.parametrize("rows", [1, 20_000, 20_001, 65_000])
def test_points_are_taken_at_a_stride_whatever_the_groups(rows: int) -> None:
    points, sizes = Points("n", rows=rows), [7, 1, 19_000, 3, rows]
    start = 0
    for size in sizes:
        end = min(start + size, rows)
        numbers = np.arange(start, end)
        others = pa.table({"n": numbers})
        points.add(Rows(numbers, {}, numbers[:, None].astype(np.float32), others))
        start = end
    stride = -(-rows // 20_000)
    assert points.vectors()[:, 0].tolist() == list(range(0, rows, stride))
    assert points.values().tolist() == list(range(0, rows, stride))


def test_words_have_colours_and_rare_ones_are_grey() -> None:
    assert groups(["_a"])[0][0] == " _a", "a legend leaves out what begins with _"
    words = [*"aaabbc", *"defghijk", "", ""]
    found = groups(words)
    assert [label for label, *_ in found] == ["3 others", "a", "b", "(none)", *"cdefgh"]
    assert [colour for _, colour, _ in found] == ["0.75", *(f"C{i}" for i in range(9))]
    assert sorted(np.concatenate([places for *_, places in found])) == list(range(len(words)))
    assert found[1][2].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["1", "0.5", "", "2"], "scale"),
        ([1, None, 3, 4], "scale"),
        ([True, False, True, True], {"True", "False"}),
        (["x", "y", "x", "1"], {"x", "y", "1"}),
        (None, "plain"),
    ],
)
def test_a_column_colours_the_picture(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    column: list[object] | None,
    expected: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    letters = letters_of({"a": 20, "b": 50, "c": 30, "d": 7})
    frame = pd.DataFrame({"sequence": list(letters.values()), "kind": column or 1})
    frame.to_parquet(tmp_path / "x.parquet")
    figures = []
    monkeypatch.setattr(picture, "png", lambda figure: (figures.append(figure), drawing.png(figure))[1])
    where, target = embedded.model(tmp_path_factory), tmp_path / "p.png"
    options = ["--picture", str(target), *(["--colour", "kind"] if column else [])]
    embed(where, tmp_path / "x.parquet", tmp_path / "y.parquet", *options)
    assert target.read_bytes().startswith(b"\x89PNG")
    assert f"{target}: a picture of them" in capsys.readouterr().out
    axis, *scale = figures[0].axes
    assert sum(len(drawn.get_offsets()) for drawn in axis.collections) == 4
    assert "component 1 (" in axis.get_xlabel()
    assert f"4 embeddings, {where}" in axis.get_title()
    if expected == "scale":
        assert scale[0].get_ylabel() == "kind"
    elif expected == "plain":
        assert axis.get_legend() is None and not scale
    else:
        assert {text.get_text() for text in axis.get_legend().get_texts()} == expected
        assert axis.get_legend().get_title().get_text() == "kind"


def test_words_stand_as_they_are_in_the_picture(tmp_path: Path) -> None:
    words = ["$\\frac$", "_x"]
    others = pa.table({"w$_$": words})
    points = Points("w$_$", rows=2)
    points.add(Rows(np.arange(2), {}, np.eye(2, dtype=np.float32), others))
    picture.draw(str(tmp_path / "p.png"), points, projection="pca", title="a $\\model$")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
