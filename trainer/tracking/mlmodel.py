"""A folder of files as an MLflow model (pyfunc), which MLflow loads and serves from any working directory.

The folder keeps its files where they are. Beside them come MLflow's own, and this code as one zip, because
the package is on no index that a server could install it from.
"""

import functools
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.tracking.mlflow_client import TrackError, library, track_errors

CODE = "code/dna_distill.zip"
_ROOT = Path(__file__).resolve().parents[2]  # of the packages
_PACKAGES = ("configs", "cluster", "data_prep", "trainer")
# What the loaders import, by distribution; a test compares it with their imports.
_NEEDS = (
    "fsspec",
    "numpy",
    "omegaconf",
    "pandas",
    "psutil",
    "py2bit",
    "pyarrow",
    "pydantic",
    "pyfaidx",
    "pysam",
    "pyyaml",
    "requests",
    "safetensors",
    "scikit-learn",
    "scipy",
    "torch",
    "tqdm",
)


@dataclass(frozen=True)
class Pyfunc:
    """How MLflow loads a folder, and what the model takes and gives.

    Attributes:
        loader: a module of ours with ``_load_pyfunc(folder)``, whose ``predict(table)`` gives a table.
        inputs, outputs: MLflow's type (string, float, double, ...) of each column by its name.
        example: some rows of ``inputs``.
    """

    loader: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    example: Any


def write_mlmodel(
    folder: Path, pyfunc: Pyfunc, *, model_id: str | None = None, needs: Sequence[str] = _NEEDS
) -> None:
    """Make ``folder``, which holds what the loader reads, an MLflow model.

    Args:
        model_id: of the LoggedModel that it is uploaded to.
        needs: distributions that are pinned to the installed version.

    Raises:
        TrackError: MLflow refuses, or a file cannot be written.
    """
    mlflow = library()
    with track_errors(f"MLflow model in {folder}"), tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, "model")
        _enter_if_lost(scratch)
        mlflow.pyfunc.save_model(
            path=str(made),
            loader_module=pyfunc.loader,
            pip_requirements=pins(needs),
            signature=mlflow.models.ModelSignature(_schema(pyfunc.inputs), _schema(pyfunc.outputs)),
            input_example=pyfunc.example,
        )
        (folder / CODE).parent.mkdir(exist_ok=True)
        (folder / CODE).write_bytes(packed_code())
        for file in sorted(made.iterdir()):
            shutil.move(file, folder / file.name)
        model = mlflow.models.Model.load(str(folder))
        model.model_id = model_id
        model.flavors["python_function"]["code"] = CODE
        model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        model.save(str(folder / "MLmodel"))


def _enter_if_lost(folder: str) -> None:
    """Make ``folder`` the working folder if that was removed, as Ray may do with a job's: MLflow asks for
    it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir(Path(folder).parent)


def _schema(columns: Mapping[str, str]) -> Any:
    types = library().types
    return types.Schema([types.ColSpec(kind, name) for name, kind in columns.items()])


def pins(distributions: Sequence[str]) -> list[str]:
    """``NAME==VERSION`` as installed, without the local part (+cpu), which no index has."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in distributions]


@functools.cache
def packed_code() -> bytes:
    """The modules of all packages as one zip, which Python imports from; the same code has the same bytes.

    It is read once in a process: one whose code may be removed while it works calls this first.

    Raises:
        TrackError: the code is not there any more.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        files = [path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py")]
        if not files:
            raise TrackError(f"the code in {_ROOT}, which a model brings with it, was removed meanwhile")
        for path in sorted(files):
            name = zipfile.ZipInfo(path.relative_to(_ROOT).as_posix())  # of 1980, whenever the file is of
            packed.writestr(name, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
