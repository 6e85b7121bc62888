"""What the tests share: quiet libraries, a cache of their own, one Ray, and the real data where it is there.

Ray, boto3 and moto are imported by the fixtures that need them: tests/gpu runs on machines that lack them.
"""

import faulthandler
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports Ray, MLflow, torch or transformers: no reports, no network, one thread each, and no
# cache outside the tests' own.
_CACHE = tempfile.TemporaryDirectory(prefix="dna-cache-")  # removed when the tests end
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "OMP_NUM_THREADS": "1",
    "DNA_CACHE": _CACHE.name,
    "HF_HOME": f"{_CACHE.name}/huggingface",
    "HF_MODULES_CACHE": f"{_CACHE.name}/huggingface/modules",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(Path(__file__).parents[1]),
}  # Ray's workers import the functions of test_jobs
for _name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402

pytest.register_assert_rewrite("tests.dist.teachers")  # its check() is to show what it found

if TYPE_CHECKING:
    from tests import s3 as s3_service

ROOT = Path(__file__).resolve().parent.parent


_SUITE_S = 3600.0


def pytest_sessionstart(session: pytest.Session) -> None:
    """A process of `make test` that has not ended after an hour says where it is and ends: the limit of a
    test does not hold for what comes after its own end."""
    if hasattr(session.config, "workerinput"):
        faulthandler.dump_traceback_later(_SUITE_S, exit=True, file=sys.__stderr__)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Of what gzip packs, which holds the time: processes that share a suite must find the same names of
    tests."""
    return "gzip" if isinstance(val, bytes) and val.startswith(b"\x1f\x8b") else None


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What a test calls in this process may ask for a thread a core; the next test has one again."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dna_data() -> Path:
    """The folder of real genomes and tasks: DNA_DATA, else ../shared/data beside the repository."""
    path = Path(os.environ.get("DNA_DATA") or ROOT.parent / "shared" / "data")
    if not (path / "genomes").is_dir():
        pytest.skip(f"no real data at {path}; set DNA_DATA")
    return path.resolve()


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator["s3_service.Proxy"]:
    """The S3 service of these tests (DNA_TEST_S3, else moto) behind the proxy that injects faults."""
    from tests import s3 as s3_service

    with s3_service.proxy() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def local_ray(s3_proxy: "s3_service.Proxy") -> Iterator[int]:
    """One local Ray of 2 CPUs for every test that needs one: each start costs seconds. Its workers can reach
    ``s3``."""
    from cluster.tasks import ray_session

    with pytest.MonkeyPatch.context() as patch:
        _reach(s3_proxy, patch)
        with ray_session.session(2) as workers:
            patch.undo()
            yield workers


@pytest.fixture
def s3(s3_proxy: "s3_service.Proxy", monkeypatch: pytest.MonkeyPatch) -> Iterator["s3_service.S3"]:
    """An empty bucket at ``s3.uri``, the environment to reach it, quick retries, and ``s3.fault(...)``."""
    from tests import s3 as s3_service

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_service.environment(s3_proxy).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DNA_STORE_RETRY_SECONDS", "0.05")
    with s3_service.bucket(s3_proxy) as bucket:
        s3_proxy.clear()
        yield bucket
        s3_proxy.clear()


def _reach(proxy: "s3_service.Proxy", patch: pytest.MonkeyPatch) -> None:
    from tests import s3 as s3_service

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        patch.delenv(name, raising=False)
    for name, value in s3_service.environment(proxy).items():
        patch.setenv(name, value)
    patch.setenv("DNA_STORE_RETRY_SECONDS", "0.2")


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """As a shell gives them, and afterwards as they were: a suite in the background has Ctrl-C ignored."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


SMALL = {"one": "ACGTTGCAAC" * 700, "two/b": "acgtnNNNNN" * 300 + "ACGTR", "three": "GATTACA"}


@pytest.fixture(scope="session")
def small_letters() -> dict[str, str]:
    """contig -> letters of the dataset ``small``."""
    return SMALL


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, local_ray: int) -> Path:
    """A dataset of three small contigs in several shards; copy it before changing it."""
    from data_prep.config import DataConfig
    from data_prep.dataset.build import build

    folder = tmp_path_factory.mktemp("small")
    fasta = "".join(f">{name} of three\n{letters}\n" for name, letters in SMALL.items())
    (folder / "genome.fa").write_text(fasta)
    build(
        DataConfig.model_validate(
            {
                "references": [{"name": "toy", "uri": str(folder / "genome.fa")}],
                "output": str(folder / "dataset"),
                "block_bp": 1024,
                "shard_bp": 3000,
                "max_n_fraction": 1,
                "split": {"val": ["two/b"]},
            }
        )
    )
    return folder / "dataset"
