"""What must travel to a machine with a GPU that reaches no package index: wheels, references of the CPU, a
script.

The machine has torch, numpy, pandas, fsspec, safetensors, pytest and what they need; it lacks what NEEDED
names.
"""

import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.gpu import test_gpu, test_teacher, where

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (
    "annotated-types",
    "braceexpand",
    "deepspeed",
    "hjson",
    "omegaconf",
    "pydantic",
    "pydantic-core",
    "typing-inspection",
    "webdataset",
)
_SCRIPT = """#!/bin/bash
# Runs the campaign with the wheels and references of this folder: bash FOLDER/run.sh --out OUT [options]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" \\
  "$here"/wheels/*.whl
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 DNA_GPU_REFERENCES="$here/references" DS_SKIP_CUDA_CHECK=1
exec python3 -m tests.gpu.campaign "$@"
"""


def pack(folder: Path, *, python: str = "3.12") -> None:
    """Fill ``folder``; wheels for CPython ``python`` on x86-64 Linux, of the versions that constraints.txt
    pins."""
    wheels(folder / "wheels", python)
    references(folder / where.REFERENCES)
    (folder / "run.sh").write_text(_SCRIPT)


def pinned(name: str) -> str:
    """NAME==VERSION as constraints.txt has it."""
    wanted = re.sub("[-_]", "[-_]", re.escape(name).replace("\\-", "-"))
    (line,) = re.findall(
        rf"^{wanted}==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE | re.IGNORECASE
    )
    return str(line)


def wheels(folder: Path, python: str) -> None:
    """A wheel of each of NEEDED; DeepSpeed has none on the index, and is built without its compiled
    operators."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    platforms = [
        f"--platform={kind}_x86_64" for kind in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
    ]
    bare = ["--quiet", "--no-deps", "--disable-pip-version-check"]
    ready = [pinned(name) for name in NEEDED if name != "deepspeed"]
    subprocess.run(
        [
            *pip,
            "download",
            *bare,
            "--only-binary=:all:",
            "--implementation=cp",
            f"--python-version={python}",
            *platforms,
            "--dest",
            str(folder),
            *ready,
        ],
        check=True,
    )
    environment = {"DS_BUILD_OPS": "0", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    subprocess.run(
        [*pip, "wheel", *bare, "--no-build-isolation", "--wheel-dir", str(folder), pinned("deepspeed")],
        check=True,
        env=environment,
    )


def references(folder: Path) -> None:
    """What CPU ranks find, which the GPU's are held against."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as toy:
        found = {"steps": test_gpu.on_cpu(test_gpu.write_toy(Path(toy))), "teachers": test_teacher.on_cpu()}
    for name, value in found.items():
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(value))
