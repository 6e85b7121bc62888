"""trainer.inference.parts: a long table whose computing was stopped goes on, and is the same."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import ConfigError
from tests.s3 import S3
from trainer.inference.parts import ChangedError, Parts, in_parts, one_by_one


class StoppedError(Exception):
    pass


def squares(numbers: list[int]) -> pa.Table:
    return pa.table({"square": [number**2 for number in numbers]})


def computed(
    parts: Parts, chunks: list[list[int]], *, stop_after: int | None = None
) -> tuple[list[int], int]:
    """All squares, and how many chunks were computed now."""
    calls = 0

    def function(chunk: list[int]) -> pa.Table:
        nonlocal calls
        if calls == stop_after:
            raise StoppedError
        calls += 1
        return squares(chunk)

    tables = list(in_parts(chunks, one_by_one(function), parts=parts))
    return [value for table in tables for value in table["square"].to_pylist()], calls


@given(st.lists(st.lists(st.integers(-9, 9), min_size=1), max_size=6), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stopped_table_goes_on_and_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[int]], data: st.DataObject
) -> None:
    output, done = str(tmp_path_factory.mktemp("parts") / "out"), 0
    for _ in range(2):
        stop_after = data.draw(st.integers(0, len(chunks)))
        if stop_after < len(chunks) - done:
            with pytest.raises(StoppedError):
                computed(Parts(output, key="k"), chunks, stop_after=stop_after)
            done += stop_after
    parts = Parts(output, key="k")
    assert parts.found == done
    values, calls = computed(parts, chunks)
    assert values == [number**2 for chunk in chunks for number in chunk]
    assert calls == len(chunks) - done
    parts.remove()
    assert not Path(parts.uri).exists()


def test_parts_of_other_work_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out.parquet")
    computed(Parts(output, key="a"), [[1], [2]])
    assert Parts(output, key="a").found == 2
    assert capsys.readouterr().err == ""
    values, calls = computed(Parts(output, key="b"), [[5]])
    assert (values, calls) == ([25], 1)
    assert "out.parquet.parts: 2 parts are removed: they are of other options" in capsys.readouterr().err
    assert Parts(output, key="a").found == 0


def test_files_that_are_no_parts_stay(tmp_path: Path) -> None:
    mine = tmp_path / "out.parts" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("x")
    with pytest.raises(
        ConfigError, match=r"out.parts is where .* are kept, and it holds 'mine.txt'; move that"
    ):
        Parts(str(tmp_path / "out"), key="")
    assert mine.read_text() == "x"


def test_parts_of_an_input_that_changed_are_worth_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[list[int]]:
        yield [1]
        raise ChangedError("changed")

    parts = Parts(str(tmp_path / "out"), key="k")
    with pytest.raises(ChangedError):
        list(in_parts(chunks(), one_by_one(squares), parts=parts))
    assert Parts(str(tmp_path / "out"), key="k").found == 0


def test_parts_come_in_order_whatever_order_they_are_computed_in(tmp_path: Path) -> None:
    def backwards(chunks: Iterator[tuple[int, list[int]]]) -> Iterator[tuple[int, pa.Table]]:
        for number, chunk in reversed(list(chunks)):
            yield number, squares(chunk)

    found = list(in_parts([[1], [2], [3]], backwards, parts=Parts(str(tmp_path / "out"), key="")))
    assert [table["square"].to_pylist() for table in found] == [[1], [4], [9]]


def test_parts_on_s3(s3: S3) -> None:
    output = f"{s3.uri}/out.parquet"
    with pytest.raises(StoppedError):
        computed(Parts(output, key="k"), [[1], [2], [3]], stop_after=2)
    parts = Parts(output, key="k")
    assert computed(parts, [[1], [2], [3]]) == ([1, 4, 9], 1)
    parts.remove()
    assert s3.objects() == {}
