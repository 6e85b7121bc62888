"""The files beside an export's weights with which transformers opens it, without any import of ours.

They are copies of trainer/models/portable, and of the one file of the backbone, byte for byte.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENIZER_CONFIG = "tokenizer_config.json"
FOLDER = Path(__file__).with_name("portable")
_TOKENIZER = "tokenization_dna.DnaTokenizer"
_RELATIVE = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)
_CLASSES = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
}


@dataclass(frozen=True)
class Portable:
    """A backbone once more, for transformers.

    Attributes:
        file: defines PREFIXConfig, PREFIXModel, PREFIXForMaskedLM and PREFIXForSequenceClassification; it
            imports torch, transformers, and relatively what lies beside it or in trainer/models/portable.
        prefix: of these classes.
    """

    file: Path
    prefix: str

    def config(self) -> dict[str, Any]:
        """What config.json says for transformers."""
        module = self.file.stem
        return {
            "architectures": [f"{self.prefix}ForMaskedLM"],
            "auto_map": {auto: f"{module}.{self.prefix}{name}" for auto, name in _CLASSES.items()},
        }

    def files(self) -> dict[str, bytes]:
        """The content of each file by its name."""

        def read(name: str) -> bytes:
            beside = self.file.with_name(name)
            return (beside if beside.exists() else FOLDER / name).read_bytes()

        tokenizer = {
            "tokenizer_class": _TOKENIZER.partition(".")[2],
            "auto_map": {"AutoTokenizer": [_TOKENIZER, None]},
            "padding_side": "right",
        }
        return _closure([self.file.stem, _TOKENIZER.partition(".")[0]], read) | {
            TOKENIZER_CONFIG: json.dumps(tokenizer, indent=2).encode() + b"\n"
        }


def shipped(name: str, *, prefix: str) -> Portable:
    """A backbone of ours, whose file is trainer/models/portable/``name``."""
    return Portable(FOLDER / name, prefix)


def of_export(config: Mapping[str, Any], read: Callable[[str], bytes]) -> dict[str, bytes]:
    """The content of these files of an export with this config.json, by name; none if it has none.

    ``read``: the content of a file of the export by its name.
    """
    if "auto_map" not in config:
        return {}
    tokenizer = read(TOKENIZER_CONFIG)
    classes = [*config["auto_map"].values(), *json.loads(tokenizer)["auto_map"]["AutoTokenizer"]]
    modules = [name.partition(".")[0] for name in classes if name]
    return _closure(modules, read) | {TOKENIZER_CONFIG: tokenizer}


def _closure(modules: Iterable[str], read: Callable[[str], bytes]) -> dict[str, bytes]:
    """The files of ``modules``, and of all that they import relatively."""
    found: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        name = f"{waiting.pop()}.py"
        if name not in found:
            found[name] = read(name)
            waiting += _RELATIVE.findall(found[name].decode())
    return dict(sorted(found.items()))
