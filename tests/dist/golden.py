"""Values that must not change by accident: bytes of shards, samples and views of a seed, losses of 20 steps.

``python -m tests.dist.golden`` records golden.json anew; CONTRIBUTING.md says when that is allowed.
"""

import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_prep.config import DataConfig
from data_prep.dataset.build import build
from tests.dist.steps import coupled_config, run_cases, small_config
from tests.ranks import on_ranks

FILE = Path(__file__).with_suffix(".json")
STEPS = 20
TOLERANCE = 1e-3  # relative, of losses: processors add fp32 numbers in different orders
LENGTHS = {"chr1": 40_000, "chr2": 21_001, "chr3": 9_000}


def letters(name: str, length: int) -> str:
    """A contig that is a function of its name, with a run of N, lower case and an ambiguous letter."""
    bits = hashlib.shake_256(name.encode()).digest(length)
    text = "".join("ACGT"[byte & 3] for byte in bits)
    text = "".join(
        text[i : i + 50].lower() if i // 50 % 7 == 3 else text[i : i + 50] for i in range(0, length, 50)
    )
    return f"{text[:3000]}{'N' * 130}{text[3130:7000]}R{text[7001:]}"


def dataset(folder: Path) -> tuple[str, dict[str, str]]:
    """(URI of a small dataset, file -> sha256 of the files that sources and settings determine)."""
    fasta = folder / "genome.fa"
    fasta.write_text("".join(f">{name}\n{letters(name, length)}\n" for name, length in LENGTHS.items()))
    output = folder / "dataset"
    values = {
        "references": [{"name": "golden", "uri": str(fasta)}],
        "output": str(output),
        "block_bp": 1024,
        "shard_bp": 32768,
        "split": {"val": ["chr3"], "test": 0.1},
        "workers": 1,
    }
    build(DataConfig.model_validate(values))
    files = sorted([*output.glob("*.tar"), *output.glob("*.bed"), output / "manifest.json"])
    return str(output), {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def digest(values: Any) -> str:
    """sha256 of nested lists of integers."""
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def sample_digests(samples: dict[Any, Any]) -> dict[str, str]:
    """Of every sample of a run, by step and id: the ids, what student and teacher read, what is scored."""
    rows = [((step, *map(int, key)), *row) for (step, key), row in sorted(samples.items())]
    return {
        "ids": digest([key for key, *_ in rows]),
        "student views": digest([student for _, student, *_ in rows]),
        "masks": digest([list(map(int, mask)) for _, _, mask, *_ in rows]),
        "teacher views": digest([teacher for _, _, _, teacher, *_ in rows]),
    }


def found(folder: Path) -> dict[str, Any]:
    """What this code gives, as golden.json has it: two runs on one rank, which together use every loss."""
    uri, files = dataset(folder)
    cases = {"plain": (small_config(uri), STEPS), "coupled": (coupled_config(uri), STEPS)}
    (runs,) = on_ranks(1, run_cases, cases)
    return {
        "dataset": files,
        "samples": {name: sample_digests(run["samples"]) for name, run in runs.items()},
        "losses": {
            name: {loss: [float(f"{step[loss]:.7g}") for step in run["losses"]] for loss in run["losses"][0]}
            for name, run in runs.items()
        },
    }


def differences(found: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """A line for each value that is not the golden one: digests exactly, losses within TOLERANCE."""
    lines = []
    for part in ("dataset", "samples"):
        ours, theirs = (_flat(values[part]) for values in (found, golden))
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                lines.append(f"{part}, {key}: sha256 is {ours.get(key)}, golden is {theirs.get(key)}")
    ours, theirs = (_flat(values["losses"]) for values in (found, golden))
    lines += [f"losses, {key}: only one of the two has it" for key in sorted(ours.keys() ^ theirs.keys())]
    for key in sorted(ours.keys() & theirs.keys()):
        for step, (one, other) in enumerate(zip(ours[key], theirs[key], strict=True), 1):
            if not math.isclose(one, other, rel_tol=TOLERANCE):
                lines.append(f"losses, {key}, step {step}: {one:.7g}, golden is {other:.7g}")
    return lines


def read() -> dict[str, Any]:
    golden: dict[str, Any] = json.loads(FILE.read_text())
    return golden


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}, ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def record(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file.write_text(json.dumps(found(Path(folder)), indent=1) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE)
