"""A folder that MLflow loads: our files stay, and the code lies beside, so that no package is needed."""

import json
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.registered import tiny_network
from tests.unit.test_dependencies import DISTRIBUTIONS
from tests.unit.test_house import FILES, FLOORS, IMPORTS, TRAVELLERS, module_of, name_of
from trainer import embed_sequences
from trainer.evaluation import encoder_pyfunc
from trainer.evaluation.encoder_pyfunc import write_encoder_mlmodel
from trainer.evaluation.tasks.kept import task_pyfunc
from trainer.models import pretrained
from trainer.tracking import mlmodel
from trainer.tracking.mlflow_client import TrackError

SEQUENCES = ["ACGTTGCA", "gattacaN"]
LOADERS = [encoder_pyfunc.__name__, task_pyfunc.__name__]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("encoder")
    network = tiny_network()
    pretrained.write(str(where), network, dict(network.state_dict()), card="a toy")
    write_encoder_mlmodel(where)
    return where


def test_the_four_files_stay_and_mlflow_finds_all_that_it_looks_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts the model's code there
    network = tiny_network()
    assert pretrained.load(str(folder)).state_dict().keys() == network.state_dict().keys()
    model = mlflow.pyfunc.load_model(str(folder))
    vectors = model.predict(pd.DataFrame({"sequence": SEQUENCES}, index=[7, 3]))
    np.testing.assert_array_equal(vectors.to_numpy(), embed_sequences(network, SEQUENCES))
    assert list(vectors.columns) == model.metadata.signature.outputs.input_names()
    assert model.metadata.signature.inputs.input_names() == ["sequence"]
    assert len(model.predict(model.input_example)) == 2
    with pytest.raises(ValueError, match="sequence 2: byte b'!' at position 0 is no nucleotide letter"):
        model.predict(pd.DataFrame({"sequence": ["ACGT", "!"]}))
    pins = (folder / "requirements.txt").read_text().split()
    assert f"torch=={version('torch').partition('+')[0]}" in pins
    assert not [pin for pin in pins if "+" in pin], "no index has a build such as +cpu"


def test_it_is_loaded_from_its_own_code_alone(folder: Path, tmp_path: Path) -> None:
    """As MLflow does it: the zip is put before all other paths, then the loader is imported."""
    code = (
        "import importlib, json, sys; folder, loader = sys.argv[1:]; sys.path.insert(0, folder + '/"
        + mlmodel.CODE
        + "'); import pandas; model = importlib.import_module(loader)._load_pyfunc(folder); import trainer; "
        "table = pandas.DataFrame({'sequence': " + repr(SEQUENCES) + "}); "
        "print(json.dumps([trainer.__file__, 'mlflow' in sys.modules, "
        "model.predict(table).to_numpy().tolist()]))"
    )
    command = [sys.executable, "-c", code, str(folder), encoder_pyfunc.__name__]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    file, with_mlflow, vectors = json.loads(done.stdout)
    assert file == str(folder / mlmodel.CODE / "trainer" / "__init__.py")
    assert not with_mlflow
    np.testing.assert_allclose(vectors, embed_sequences(tiny_network(), SEQUENCES), atol=1e-6)


def test_the_code_has_every_module_and_the_same_bytes_again(folder: Path) -> None:
    first = (folder / mlmodel.CODE).read_bytes()
    mlmodel.packed_code.cache_clear()
    assert mlmodel.packed_code() == first
    assert len(first) < 1 << 20
    with zipfile.ZipFile(folder / mlmodel.CODE) as packed:
        assert set(packed.namelist()) == {name_of(path) for path in [*FILES, *TRAVELLERS]}


@pytest.mark.parametrize("loader", LOADERS)
def test_what_a_loader_imports_is_pinned(loader: str) -> None:
    """All modules that it reaches, less those that the public API imports when they are first used."""
    modules = {module_of(path): imported for path, imported in IMPORTS.items()}
    reached, waiting, libraries = set(), [loader], set()
    while waiting:
        module = waiting.pop()
        if module.split(".")[0] not in FLOORS:
            libraries.add(module.split(".")[0])
        elif module not in reached:
            reached.add(module)
            waiting += modules.get(module, [])
    needed = {DISTRIBUTIONS.get(library, library) for library in libraries - sys.stdlib_module_names}
    # mlflow pins itself; others are imported if they are wanted, or there.
    optional = {"mlflow", "deepspeed", "aiohttp", "ray", "triton", "obstore", "huggingface-hub", "biopython"}
    assert {name.replace("_", "-") for name in needed} - optional <= set(mlmodel._NEEDS)


def test_a_working_folder_that_was_removed_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, (place, lost) = tiny_network(), (tmp_path / "model", tmp_path / "lost")
    pretrained.write(str(place), network, dict(network.state_dict()), card="a toy")
    lost.mkdir()
    monkeypatch.chdir(lost)
    lost.rmdir()
    write_encoder_mlmodel(place)
    assert (place / "MLmodel").is_file()


def test_code_that_was_removed_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mlmodel, "_ROOT", tmp_path)
    with pytest.raises(TrackError, match=f"the code in {tmp_path}, which a model brings"):
        mlmodel.packed_code.__wrapped__()
