"""The house: floors, one library in one file, the order inside a package as the README tree has it, short
files."""

import ast
import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ["configs", "cluster", "data_prep", "trainer"]
ONLY_IN = {
    "ray": {"cluster/tasks/jobs.py", "cluster/launch/ray_nodes.py"},
    "fsspec": {"cluster/storage/uri.py"},
    "pyfaidx": {"data_prep/sources/reference.py"},
    "py2bit": {"data_prep/sources/twobit.py"},
    "webdataset": {"data_prep/dataset/tar.py"},
    "deepspeed": {"trainer/engine/optimizer_adapters.py", "trainer/engine/engine.py"},
    "mlflow": {"trainer/tracking/mlflow_client.py"},
}
TRAINER_MAY_USE = {"data_prep.alphabet", "data_prep.shards"}
MAX_LINES = 300

FILES = [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names imported anywhere under ``node``; ``from a import b`` gives a.b where that is a module,
    else a."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, f"line {part.lineno}: relative import"
            for alias in part.names:
                inner = ROOT / f"{part.module}.{alias.name}".replace(".", "/")
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{part.module}.{alias.name}" if is_module else str(part.module)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def readme_order() -> dict[str, list[str]]:
    """package -> its files and folders from top to bottom, from the README's fenced tree."""
    order: dict[str, list[str]] = {}
    package = None
    for block in re.findall(
        r"^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    ):
        for line in block.splitlines():
            if head := re.match(r"(\w+)/", line):
                package = head[1] if head[1] in FLOORS else None
            elif package and (entry := re.match(r"  (\w+(?:\.py|/))(?=\s|$)", line)):
                order.setdefault(package, []).append(entry[1].removesuffix(".py").rstrip("/"))
    return order


def test_floors() -> None:
    faults = []
    for path in FILES:
        own = path.relative_to(ROOT).parts[0]
        for name in imports(tree(path)):
            floor = name.split(".")[0]
            if floor == "tests" or (floor in FLOORS and FLOORS.index(floor) > FLOORS.index(own)):
                faults.append(f"{name_of(path)} imports {name} from a floor to its right")
            if own == "trainer" and floor == "data_prep" and name not in TRAINER_MAY_USE:
                faults.append(
                    f"{name_of(path)} imports {name}; of data_prep the trainer may use alphabet and shards"
                )
    assert faults == []


def test_one_library_one_file() -> None:
    faults = [
        f"{name_of(path)} imports {name}, which belongs in "
        f"{' and '.join(sorted(ONLY_IN[name.split('.')[0]]))}"
        for path in FILES
        for name in imports(tree(path))
        if name_of(path) not in ONLY_IN.get(name.split(".")[0], {name_of(path)})
    ]
    assert faults == []


def test_no_import_of_ours_inside_a_function() -> None:
    faults = [
        f"{name_of(path)}: {function.name} imports {name}"
        for path in FILES
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in imports(function)
        if name.split(".")[0] in FLOORS
    ]
    assert faults == []


def test_a_file_imports_only_files_above_it_in_the_readme_tree() -> None:
    if not (ROOT / "README.md").is_file():
        pytest.skip("there is no README.md yet, whose tree gives the order")
    order, faults = readme_order(), []
    for path in FILES:
        package, entry = path.relative_to(ROOT).parts[:2]
        entry = entry.removesuffix(".py")
        if entry == "__init__":
            continue
        above = order.get(package, [])
        if entry not in above:
            faults.append(f"{name_of(path)} is not in the tree of README.md")
            continue
        for name in imports(tree(path)):
            floor, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if floor == package and other in above and above.index(other) > above.index(entry):
                faults.append(f"{name_of(path)} imports {name}, which stands below it in README.md")
    listed = {(package, entry) for package, entries in order.items() for entry in entries}
    there = {(package, found.stem) for package in FLOORS for found in (ROOT / package).iterdir()}
    faults += [
        f"README.md lists {package}/{entry}, which is not there" for package, entry in sorted(listed - there)
    ]
    assert faults == []


def test_every_folder_of_tests_is_collected(pytestconfig: pytest.Config) -> None:
    """pytest passes over folders called dist or build unless it is told otherwise."""
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {"tests/dist", "tests/faults", "tests/gpu", "tests/unit"} <= folders
    hidden = [
        folder
        for folder in sorted(folders)
        for part in folder.split("/")
        for pattern in pytestconfig.getini("norecursedirs")
        if fnmatch.fnmatch(part, pattern)
    ]
    assert hidden == []


def test_files_are_short() -> None:
    long = {
        name_of(path): count for path in FILES if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}, f"past {MAX_LINES} lines a file wants to be a folder"
