"""Text -> values: files of any Unicode encoding, YAML, and the VALUE of ``key=VALUE``. Text stays as it is
written.

YAML 1.1 reads 010 as 8, 12:30 as 750 and no as False. Here only what is plainly a number, true, false or null
is one, and a number keeps its text, so that a contig called 1e3 or 1.10 is found where a name is wanted.
"""

import codecs
import re
from collections.abc import Callable
from typing import Any, Self

import yaml

from configs import magic

_TRUE, _FALSE, _NULL = (
    {"true", "True", "TRUE"},
    {"false", "False", "FALSE"},
    {"", "~", "null", "Null", "NULL"},
)
_INTEGER = re.compile(r"-?(0|[1-9]\d*(_\d+)*)", re.ASCII)
_REAL = re.compile(r"[-+]?(\d+(_\d+)*\.?|(\d+(_\d+)*)?\.\d+(_\d+)*)([eE][-+]?\d+)?", re.ASCII)
_MERGE, _TEXT, _WORD = (f"tag:yaml.org,2002:{tag}" for tag in ("merge", "str", "word"))
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # UTF-32's begins with UTF-16's


class _Written:
    """A number that knows how it was written, such as 1_000, 1e3 or 1.10: ``str`` gives that."""

    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)  # type: ignore[call-arg]  # of the number beside it in the class
        number.text = text
        return number

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.text,)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


class Integer(_Written, int):
    """An int as it was written."""


class Real(_Written, float):
    """A float as it was written."""


def decode(data: bytes) -> str:
    """The text of ``data``: UTF-8, or what its byte-order mark says; the mark is left out.

    Raises:
        ValueError: other bytes, or NUL, which UTF-16 without a mark is full of.
    """
    refuse_binary(data)
    mark, encoding = next(
        ((mark, encoding) for mark, encoding in MARKS if data.startswith(mark)), (b"", "utf-8")
    )
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as fault:
        line, byte = data.count(b"\n", 0, fault.start) + 1, fault.object[fault.start : fault.start + 1]
        raise ValueError(
            f"not text in {encoding.upper()}: line {line} has byte {byte!r}; save it as UTF-8"
        ) from fault
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise ValueError(f"not text in {encoding.upper()}: line {line} has a NUL; save it as UTF-8")
    return text


def refuse_binary(data: bytes) -> None:
    """ValueError if a file that begins with ``data`` is of a known format that is no text."""
    if kind := magic.format_of(data):
        raise ValueError(
            f"it is {kind}, not text; {'unpack it' if kind in magic.COMPRESSED else 'save it as text'}"
        )


def scalar(text: str) -> Any:
    """What one plain word of YAML stands for: a number, True, False, None, or itself."""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text in _NULL:
        return None
    if _INTEGER.fullmatch(text):
        return Integer(text)
    return Real(text) if _REAL.fullmatch(text) and not text.lstrip("+-").isdecimal() else text


_Base: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # libyaml's takes tabs between words, the other does not


class _Loader(_Base):
    """Plain words are what ``scalar`` says; keys are text, and none stands in a mapping twice."""

    # By first character; None: by any. Merge keys (<<) are the one thing of YAML 1.1 that is left.
    yaml_implicit_resolvers = {"<": [(_MERGE, re.compile("<<"))], None: [(_WORD, re.compile(""))]}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value} is given twice", key.start_mark
                    )
                seen.add(key.value)
                key.tag = _TEXT
        pairs: dict[Any, Any] = super().construct_mapping(node, deep)
        return pairs


def _construct_word(loader: Any, node: yaml.ScalarNode) -> Any:
    """A plain word. YAML would join it with indented lines below it, which are rarely meant."""
    if node.end_mark.line > node.start_mark.line:
        fault = "the value goes on in the next line, which is indented; put it in quotes"
        raise yaml.constructor.ConstructorError(None, None, fault, node.start_mark)
    return scalar(str(loader.construct_scalar(node)))


_Loader.add_constructor(_WORD, _construct_word)


def parse(text: str) -> Any:
    """The values of the one YAML document ``text``. ValueError, one sentence with the line, if it cannot be
    read."""
    return _in_a_sentence(lambda: yaml.load(text, _Loader))


def argument(word: str) -> Any:
    """The value in ``key=word``: a list, a mapping or a text in quotes as in YAML; anything else is one plain
    word, whatever characters it has (``run #2``, ``a: b``, ``@x``). White space around it goes.

    Raises:
        ValueError: brackets or quotes that do not close, or that something follows.
    """
    word = word.strip()
    if not word.startswith(("[", "{", '"', "'")):
        return scalar(word)
    node = _in_a_sentence(lambda: yaml.compose(word, _Loader))
    if rest := word[node.end_mark.index :].strip():
        raise ValueError(f"{rest!r} follows the end of the value; put all of it in quotes")
    return _in_a_sentence(lambda: yaml.load(word, _Loader))


def _in_a_sentence(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + ", ".join(filter(None, (fault.context, fault.problem)))) from fault
    except (yaml.YAMLError, RecursionError) as fault:
        raise ValueError(" ".join(str(fault).split())) from fault
