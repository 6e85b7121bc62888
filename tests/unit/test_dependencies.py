"""pyproject.toml: the dependencies of each floor are what it imports, and pinned."""

import ast
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.test_house import FLOORS, IMPORTS, ROOT, TRAVELLERS, imports, tree

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {
    "Bio": "biopython",
    "pydantic_core": "pydantic",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}  # else the module
BESIDE_TRANSFORMERS = {"accelerate", "peft"}  # for its Trainer, and for LoRA: no file imports them
BROUGHT = {"triton"}  # by torch, where it is for GPUs; without it kernels are plain
BY_USERS = {"umap", "huggingface-hub"}  # installed by those who ask for it; without it the option is refused
BACKENDS = {"boto3", "pyarrow", "s3fs"}  # no file need import them: MLflow, pandas and fsspec do
FOR_READERS = {"biopython", "py2bit", "pyfaidx"}  # of data_prep/sources, which trainer's inference reads by


def distributions(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


BASE = distributions(PROJECT["dependencies"])
NEEDS = {  # folders -> the lists that are installed where they run
    ("configs", "cluster/process", "cluster/storage", "data_prep", "cluster/tasks"): ("data",),
    ("configs", "cluster/process", "cluster/storage", "trainer"): ("train",),
    ("configs", "cluster"): ("train", "cluster"),
}


def imported(folders: tuple[str, ...]) -> dict[str, str]:
    """Distribution -> a file in ``folders`` that imports it."""
    found = {}
    for path, modules in IMPORTS.items():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(tuple(f"{folder}/" for folder in folders)):
            for module in {module.split(".")[0] for module in modules} - set(FLOORS):
                if module not in sys.stdlib_module_names:
                    found[canonicalize_name(DISTRIBUTIONS.get(module, module))] = name
    return found


@pytest.mark.parametrize("folders", NEEDS, ids=lambda folders: folders[-1])
def test_what_is_imported_is_installed(folders: tuple[str, ...]) -> None:
    there = BASE.union(*(distributions(EXTRAS[extra]) for extra in NEEDS[folders]))
    needed = imported(folders)
    if (
        folders[-1] == "cluster/tasks"
    ):  # torch is only for the collectives, which data preparation has none of
        assert needed.pop("torch") == "cluster/process/compat.py"
    missing = [
        f"{name} (imported in {file})"
        for name, file in needed.items()
        if name not in there | BROUGHT | BY_USERS
    ]
    assert missing == []


def test_what_is_installed_is_imported() -> None:
    assert BASE - imported(("configs", "cluster", "data_prep", "trainer")).keys() == set()
    for extra, folders in {
        "data": ("data_prep", "cluster/tasks", "cluster/storage"),
        "train": ("trainer", "cluster/storage"),
        "cluster": ("cluster",),
    }.items():
        known = FOR_READERS if extra == "train" else set()
        assert distributions(EXTRAS[extra]) - imported(folders).keys() - BACKENDS == known, extra


def test_files_that_travel_need_the_extra_hub() -> None:
    """Elsewhere they find torch and transformers; here training needs no transformers."""
    found = {
        module.split(".")[0] for path in TRAVELLERS for node in tree(path).body for module in absolute(node)
    }
    assert found - set(sys.stdlib_module_names) == {"torch", "transformers"}
    assert distributions(EXTRAS["hub"]) == {"transformers"} | BESIDE_TRANSFORMERS
    assert not distributions(EXTRAS["hub"]) & (BASE | distributions(EXTRAS["train"]))


def absolute(node: ast.AST) -> list[str]:
    """What ``node`` imports, unless relatively."""
    return [] if isinstance(node, ast.ImportFrom) and node.level else list(imports(node))


def test_every_dependency_is_pinned_to_a_version_that_fits() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    requirements = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    for requirement in map(Requirement, requirements):
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"constraints.txt does not pin {requirement.name}"
        assert version in requirement.specifier


def test_make_installs_every_extra() -> None:
    (extras,) = re.findall(r"--editable '\.\[(.+)\]'", (ROOT / "Makefile").read_text())
    assert set(extras.split(",")) == EXTRAS.keys()


def test_scripts_and_files_beside_the_code_are_packaged() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for target in PROJECT["scripts"].values():
        module = target.split(":")[0]
        assert module in tools["py-modules"]
        assert (ROOT / f"{module}.py").is_file()
    for floor in FLOORS:
        patterns = tools["package-data"].get(floor, [])
        shipped = {path for pattern in patterns for path in (ROOT / floor).glob(pattern)}
        files = {path for path in (ROOT / floor).rglob("*.*") if path.suffix not in (".py", ".pyc")}
        assert files == shipped, floor
