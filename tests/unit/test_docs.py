"""README.md and docs/*.md: what they link to, name and tell people to type is there."""

import importlib
import io
import re
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cluster.__main__ import main as cluster_main
from tests.unit.test_house import ROOT
from tests.unit.test_reference_configs import FOLDER, MODELS, comments

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_BYTES = 150_000  # of a picture
OURS = ("cluster", "data_prep", "dna_distill", "tests", "trainer")
SUBCOMMANDS = ("cluster", "data_prep")  # their help is that of the word behind them
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"(?:python -m ([a-z_.]+)|\b(trainer/main\.py))(.*)")
_END = re.compile(r"\s(?:--(?=\s|$)|[|&;#])")  # what follows is not for this command
_OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")
_OVERRIDE = re.compile(r"(?<![\w./$-])([a-z]+(?:\.[A-Za-z0-9_]+)+)=(?!=)")
_CONFIG = re.compile(r"configs/[\w./-]+\.(?:yaml|sh)")
EXAMPLES = ("NAME", "/my")  # files that a reader replaces by his own
OPEN = ("arms.", "dotted.", "mlflow.", "model.", "train.deepspeed.")  # with keys of their own, or no section
KEYS = {
    re.sub(r"\.0\b", "", key) for name in MODELS for key in comments((FOLDER / name).read_text())
}  # of all configs


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[tuple[str, str]]:
    """(module, the rest of the line) of every command of ours, in code blocks and between back-ticks."""
    code = [block.replace("\\\n", " ") for block in _FENCE.findall(text)]
    code += [" ".join(span.split()) for span in _CODE.findall(_FENCE.sub("", text))]
    found = []
    for line in "\n".join(code).splitlines():
        for module, script, rest in _COMMAND.findall(line):
            if (module or script).split(".")[0].split("/")[0] in OURS:
                found.append((module or "trainer.main", _END.split(rest)[0]))
    return found


@cache
def options(module: str, subcommand: str) -> str:
    """What says which options a command has: its help, or the source of a module of the tests."""
    path = ROOT / module.replace(".", "/")
    if module.startswith("tests."):
        return (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    if module == "cluster":
        main = cluster_main
    else:
        main = importlib.import_module(f"{module}.__main__" if path.is_dir() else module).main
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as end:
        raise SystemExit(main([*subcommand.split(), "--help"]))
    assert end.value.code == 0, said.getvalue()
    return said.getvalue()


def faults(text: str) -> list[str]:
    """What is wrong with the commands of ``text``."""
    found = []
    for module, rest in commands(text):
        path = ROOT / module.replace(".", "/")
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            found.append(f"python -m {module}: there is no such module")
            continue
        first = (re.match(r"\s*([a-z]+)(?=\s|$)", rest) or ["", ""])[1] if module in SUBCOMMANDS else ""
        given = _OPTION.findall(rest)
        found += [
            f"python -m {module}{first and ' '}{first}: no option {option}"
            for option in (given if first or module not in SUBCOMMANDS else [])
            if not re.search(rf"{option}(?![\w-])", options(module, first))
        ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        there = page.parent / target if target else page
        assert there.exists(), f"{name_of(page)} links to {link}"
        if anchor:
            assert anchor in slugs(there.read_text()), f"{name_of(page)} links to {link}: no such heading"
    named = set(re.findall(r"\bdocs/[\w./-]+\w", text))
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist_with_their_options(page: Path) -> None:
    assert faults(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configs_and_keys_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    missing = {name for name in _CONFIG.findall(text) if not (ROOT / name).is_file()}
    assert {name for name in missing if not any(example in name for example in EXAMPLES)} == set()
    named = {key for key in _OVERRIDE.findall(text) if not key.startswith(OPEN)}
    assert sorted(named - KEYS) == []


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name_of(page) for page in PAGES[1:] if f"({name_of(page)})" not in readme] == []


def test_the_glossary_has_the_words_of_the_house_in_order() -> None:
    rows = re.findall(
        r"^\| (?!word)([^|]+?) \| (.+?) \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE
    )
    words = [word.replace("`", "").lower() for word, _ in rows]
    assert words == sorted(words)
    house = (ROOT / "CONTRIBUTING.md").read_text().split("## Words")[1].split("\n## ")[0]
    needed = [
        word.split(" (")[0].lower() for word in re.findall(r"^\| (?!word)([^|-]+?) \|", house, re.MULTILINE)
    ]
    assert len(needed) > 25
    assert [word for word in needed if not any(re.search(rf"\b{word}\b", entry) for entry in words)] == []


def test_pictures_are_small_and_shown() -> None:
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".svg")]
    assert {path.name: path.stat().st_size for path in pictures if path.stat().st_size > MOST_BYTES} == {}
    shown = {link.split("/")[-1] for page in PAGES for link in _LINK.findall(page.read_text())}
    assert {path.name for path in pictures} <= shown
    for path in pictures:
        if path.suffix == ".svg":
            ElementTree.parse(path)


def test_faults_are_found() -> None:
    text = (
        "Run `python -m trainer.nothing --x` or\n"
        "```\npython -m data_prep build \\\n    --konfig a.yaml b=c # --d\n"
        "python -m trainer.embed --model m --inputs x\npython -m cluster train --config a -- --other\n"
        "deepspeed trainer/main.py --config a --fast\npython -m pip install --upgrade pip\n```\n"
    )
    assert faults(text) == [
        "python -m data_prep build: no option --konfig",
        "python -m trainer.embed: no option --inputs",
        "python -m trainer.main: no option --fast",
        "python -m trainer.nothing: there is no such module",
    ]
    assert slugs("## What `a.b` is, and where\n```\n# no heading\n```\n") == {"what-ab-is-and-where"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_row_stands_in_a_table(page: Path) -> None:
    blocks = re.split(r"\n(?!\|)", "\n" + _FENCE.sub("", page.read_text()))
    tables = [block.split("\n|")[1:] for block in blocks if "\n|" in block]
    assert [rows[0] for rows in tables if not re.fullmatch(r"[-:| ]+", [*rows, "", ""][1])] == []
