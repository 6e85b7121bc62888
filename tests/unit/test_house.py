"""The house: files import what the tables of CONTRIBUTING.md allow, and all that they allow is used."""

import ast
import fnmatch
import graphlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ["configs", "cluster", "data_prep", "trainer"]  # each imports only from those before it
MAX_LINES = 300
# The public API imports a room when it is first used, and embed.py the workers, which need Ray, on demand.
LAZY = {"trainer/__init__.py", "trainer/api.py", "trainer/embed.py"}
MAY_SKIP_THE_FORMATTER: set[str] = set()  # files with tables of numbers, which a formatter would tear apart

TRAVELS = ROOT / "trainer/models/portable"  # copied into exports, where nothing else of ours is
TRAVELLERS = sorted(TRAVELS.glob("*.py"))
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py")) if path not in TRAVELLERS]


@dataclass(frozen=True)
class Room:
    """A row of a table: a folder or file of a floor, what it may import, and the libraries that it owns."""

    purpose: str
    may_import: frozenset[str]  # "trainer/core"; a floor's own rooms stand there without the floor
    libraries: frozenset[str]


Rooms = dict[str, Room]
MayTake = dict[str, frozenset[str]]
Edges = dict[tuple[str, str], list[str]]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of ``module``: trainer/core of trainer.core.random, trainer/__init__ of trainer itself."""
    floor, _, rest = module.partition(".")
    return floor if floor == "configs" else f"{floor}/{rest.split('.')[0] or '__init__'}"


def imports(node: ast.AST) -> Iterator[str]:
    """Modules imported anywhere under ``node``; ``from a import b`` is a.b if b is a module."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, f"line {part.lineno}: relative import"
            for alias in part.names:
                inner = ROOT / f"{part.module}.{alias.name}".replace(".", "/")
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{part.module}.{alias.name}" if is_module else str(part.module)
        elif isinstance(part, ast.Call) and ast.unparse(part.func).endswith("import_module"):
            yield from (argument.value for argument in part.args if isinstance(argument, ast.Constant))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


IMPORTS = {path: sorted(set(imports(tree(path)))) for path in FILES}


def words(cell: str) -> list[str]:
    return [word.strip(" `").rstrip("/") for word in cell.split(",") if word.strip(" –")]


def rooms(text: str) -> Rooms:
    """Room ("trainer/core") -> its row, from the tables under the headings ``### trainer/``, …"""
    found = {}
    for floor, section in re.findall(r"^### (\w+)/.*?\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL):
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if floor not in FLOORS or not line.startswith("| `"):
                continue
            room, purpose, allowed, libraries = cells
            key = f"{floor}/{room.strip('`').removesuffix('.py').rstrip('/')}"
            assert key not in found, f"CONTRIBUTING.md has two rows of {key}"
            found[key] = Room(
                purpose,
                frozenset(word if "/" in word else f"{floor}/{word}" for word in words(allowed)),
                frozenset(words(libraries)),
            )
    return found


def floors(text: str) -> MayTake:
    """Floor -> what all of its rooms may import of other floors, from the table of floors."""
    rows = re.findall(r"^\| `(\w+)/` \|[^|\n]*\|([^|\n]*)\|$", text, re.MULTILINE)
    return {floor: frozenset(words(cell)) for floor, cell in rows}


TEXT = (ROOT / "CONTRIBUTING.md").read_text()
ROOMS, MAY_TAKE = rooms(TEXT), floors(TEXT)
OWNERS = {
    library: {key for key, room in ROOMS.items() if library in room.libraries}
    for room in ROOMS.values()
    for library in room.libraries
}


def edges() -> Edges:
    """(room, room that it imports) -> a sentence for each such import."""
    found: Edges = {}
    for path, modules in IMPORTS.items():
        for module in modules:
            here, there = room_of(module_of(path)), room_of(module)
            if module.split(".")[0] in FLOORS and here != there:
                found.setdefault((here, there), []).append(f"{name_of(path)} imports {module}")
    return found


def test_every_file_is_in_a_room_of_the_table_and_every_row_has_files() -> None:
    assert MAY_TAKE.keys() == set(FLOORS)
    there = {room_of(module_of(path)) for path in FILES if path.read_text() or path.parent.parent != ROOT}
    assert sorted(there - ROOMS.keys() - {"configs"}) == [], "rooms without a row in CONTRIBUTING.md"
    assert sorted(ROOMS.keys() - there) == [], "rows of CONTRIBUTING.md without a file"


def not_allowed(rooms: Rooms, may_take: MayTake, used: Edges) -> list[str]:
    return [
        f"{import_}, which the row of {here} in CONTRIBUTING.md does not allow"
        for (here, there), found in used.items()
        for import_ in found
        if there not in (rooms[here].may_import if here in rooms else set()) | may_take[here.split("/")[0]]
    ]


def not_used(rooms: Rooms, may_take: MayTake, used: Edges) -> list[str]:
    """What a row allows and no file needs."""
    by_floor = {(here.split("/")[0], there) for here, there in used}
    allowed = [(here, there) for here, room in rooms.items() for there in room.may_import]
    allowed += [(floor, there) for floor, taken in may_take.items() for there in taken]
    return [
        f"the row of {here} in CONTRIBUTING.md allows {there}, which no file of it imports"
        for here, there in sorted(allowed)
        if (here, there) not in used and (here, there) not in by_floor
    ]


def test_a_room_imports_only_what_its_row_allows() -> None:
    faults = not_allowed(ROOMS, MAY_TAKE, edges())
    assert not faults, "\n".join(faults)


def test_what_a_row_allows_is_used() -> None:
    faults = not_used(ROOMS, MAY_TAKE, edges())
    assert not faults, "\n".join(faults)


def test_the_rules_find_what_is_wrong() -> None:
    rooms = {"trainer/run": Room("", frozenset({"trainer/core", "trainer/data"}), frozenset())}
    may_take = {"trainer": frozenset({"configs", "cluster/process"})}
    used = {
        ("trainer/run", "trainer/core"): ["a imports b"],
        ("trainer/run", "configs"): ["a imports configs"],
        ("trainer/run", "trainer/losses"): ["a imports c"],
        ("trainer/new", "trainer/core"): ["d imports b"],
    }
    allow = "in CONTRIBUTING.md does not allow"
    assert not_allowed(rooms, may_take, used) == [
        f"a imports c, which the row of trainer/run {allow}",
        f"d imports b, which the row of trainer/new {allow}",
    ]
    assert [fault.split(" allows ")[1].split(",")[0] for fault in not_used(rooms, may_take, used)] == [
        "cluster/process",
        "trainer/data",
    ]


def test_floors_import_only_from_their_left() -> None:
    faults = []
    for here, allowed in {**MAY_TAKE, **{key: room.may_import for key, room in ROOMS.items()}}.items():
        left = FLOORS[: FLOORS.index(here.split("/")[0]) + ("/" in here)]
        faults += [f"{here} may import {there}" for there in allowed if there.split("/")[0] not in left]
    assert faults == [], "CONTRIBUTING.md allows imports from the right"
    assert [
        f"{name_of(path)} imports {m}" for path in FILES for m in IMPORTS[path] if m.split(".")[0] == "tests"
    ] == []


def test_no_circle_between_rooms_nor_between_the_files_of_one() -> None:
    graphs: dict[str, dict[str, set[str]]] = {
        "CONTRIBUTING.md": {key: set(r.may_import) for key, r in ROOMS.items()}
    }
    for path, modules in IMPORTS.items():
        me = module_of(path)
        inner = {module for module in modules if room_of(module) == room_of(me) and module != me}
        graphs.setdefault(room_of(me), {})[me] = inner
    for where, graph in graphs.items():
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as fault:
            pytest.fail(f"{where}: {' is imported by '.join(fault.args[1])}")


def test_one_library_one_room() -> None:
    faults, used = [], set()
    for path in FILES:
        here = room_of(module_of(path))
        for library in {module.split(".")[0] for module in IMPORTS[path]}:
            used.add((here, library))
            if here not in OWNERS.get(library, {here}):
                faults.append(
                    f"{name_of(path)} imports {library}, which is for {', '.join(sorted(OWNERS[library]))}"
                )
    assert not faults, "\n".join(faults)
    stale = [
        f"{key}: {library}"
        for key, room in ROOMS.items()
        for library in room.libraries
        if (key, library) not in used
    ]
    assert stale == [], "libraries in CONTRIBUTING.md that no file of their room imports"
    assert {
        "ray",
        "fsspec",
        "pyfaidx",
        "py2bit",
        "webdataset",
        "deepspeed",
        "mlflow",
        "sklearn",
        "matplotlib",
    } <= OWNERS.keys()


def test_files_that_travel_import_each_other_alone_and_nobody_imports_them() -> None:
    """transformers takes along what a file imports relatively from beside it; what else is there must be
    installed."""
    names, faults = {path.stem for path in TRAVELLERS}, []
    for path in TRAVELLERS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in names, f"{name_of(path)}: {ast.unparse(node)}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                faults += [f"{name_of(path)} imports {m}" for m in imports(node) if m.split(".")[0] in FLOORS]
    faults += [
        f"{name_of(path)} imports {module}"
        for path in FILES
        for module in IMPORTS[path]
        if f"{module}.".startswith(f"{name_of(TRAVELS).replace('/', '.')}.")
    ]
    assert faults == []
    assert len(TRAVELLERS) > 3, "they are there"


def test_no_import_of_ours_inside_a_function() -> None:
    faults = [
        f"{name_of(path)}: {function.name} imports {module}"
        for path in FILES
        if name_of(path) not in LAZY
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for module in imports(function)
        if module.split(".")[0] in FLOORS
    ]
    assert not faults, "\n".join(faults)


def test_the_readme_has_the_same_rooms_with_the_same_purposes() -> None:
    (fenced,) = re.findall(
        r"^```\n(configs/.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    listed, floor = {}, ""
    for line in fenced.splitlines():
        if head := re.match(r"(\w+)/", line):
            floor = head[1]
        elif entry := re.fullmatch(r"  (\S+?)(?:\.py|/)\s+(.+)", line):
            listed[f"{floor}/{entry[1]}"] = entry[2]
    ours = {key: purpose for key, purpose in listed.items() if key.split("/")[0] in FLOORS[1:]}
    assert ours == {key: room.purpose for key, room in ROOMS.items()}
    entries = [path for path in (ROOT / "configs").iterdir() if path.is_dir() or path.suffix == ".py"]
    assert {key for key in listed if key.startswith("configs/")} == {
        f"configs/{path.stem}" for path in entries if not path.name.startswith("_")
    }


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
        name_of(path): count
        for path in FILES + TRAVELLERS
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}, f"a file of more than {MAX_LINES} lines should be two"


def test_the_formatter_decides_the_layout_everywhere() -> None:
    skipping = {
        name_of(path)
        for folder in (*FLOORS, "tests")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"#\s*fmt: (skip|off)", path.read_text()) and path != Path(__file__)
    }
    assert skipping == MAY_SKIP_THE_FORMATTER


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("| `core/` | a | data | torch |\n| `core/` | b | – | – |", "two rows of trainer/core"),
    ],
)
def test_a_wrong_table_is_refused(row: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        rooms(f"### trainer/\n{row}\n")


def test_the_table_is_read_as_it_stands() -> None:
    row = "| `main.py` | runs | run, `data_prep/sources` | `mlflow` |"
    found = rooms(f"### trainer/\n| room | p | m | l |\n|---|---|---|---|\n{row}\n## B\n")
    assert found == {
        "trainer/main": Room("runs", frozenset({"trainer/run", "data_prep/sources"}), frozenset({"mlflow"}))
    }
    assert floors("| `cluster/` | ranks | configs |\n") == {"cluster": frozenset({"configs"})}
