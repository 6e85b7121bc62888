"""The files of configs/cluster for Ray, Kubernetes and Slurm: valid, closed to strangers, true to this
repository.

Each check is also shown a copy with a mistake in it, and must refuse it.
"""

import contextlib
import copy
import http.server
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import jsonschema
import pytest
import yaml
from pydantic import Field, StrictStr, ValidationError, model_validator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.job.cli import submit as ray_submit
from ray.scripts.scripts import start as ray_start

import configs
from cluster.launch.config import ClusterConfig
from configs import Section
from tests import signals
from tests.faults.test_cluster_build import answers, free_port, wait_for
from trainer.run.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "cluster"
LAUNCHERS = ["ray-onprem", "ray-aws"]


def pinned(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, name
    return found[1]


def command_faults(command: str) -> list[str]:
    """What is wrong with a `python -m cluster train` command: files that are not there, keys that are
    unknown."""
    words = shlex.split(command)
    if words[:5] != ["python", "-m", "cluster", "train", "--config"] or words.count("--") != 1:
        return [f"not `python -m cluster train --config FILE … -- …`: {command}"]
    cut = words.index("--")
    if words[cut + 1 : cut + 2] != ["--config"]:
        return [f"no --config for the training command: {command}"]
    faults = []
    for model, part in ((ClusterConfig, words[5:cut]), (TrainConfig, words[cut + 2 :])):
        try:
            configs.load(model, ROOT / part[0], part[1:])  # type: ignore[type-var]
        except configs.ConfigError as fault:
            faults.append(str(fault))
    return faults


# --- KubeRay: the fields of ray.io/v1 RayJob and of core/v1 that are in use. Anything else is a typo until it
# is added.

Quantity = Annotated[str, Field(strict=True, pattern=r"^[0-9]+(m|Mi|Gi)?$")]


class Named(Section):
    name: StrictStr


class EnvSource(Section):
    secretRef: Named


class FieldRef(Section):
    fieldPath: Literal["status.podIP"]


class ValueFrom(Section):
    fieldRef: FieldRef


class Variable(Named):
    value: StrictStr | None = None
    valueFrom: ValueFrom | None = None

    @model_validator(mode="after")
    def _one(self) -> "Variable":
        assert (self.value is None) != (self.valueFrom is None), f"{self.name}: value or valueFrom"
        return self


class Port(Named):
    containerPort: int


class Resources(Section):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]

    @model_validator(mode="after")
    def _gpus(self) -> "Resources":
        gpus = {part.get("nvidia.com/gpu") for part in (self.requests, self.limits)}
        assert len(gpus) == 1, "Kubernetes wants as many GPUs in requests as in limits"
        return self


class Mount(Named):
    mountPath: Annotated[str, Field(pattern="^/")]


class Container(Named):
    image: StrictStr
    workingDir: StrictStr | None = None
    env: list[Variable] = []
    envFrom: list[EnvSource] = []
    ports: list[Port] = []
    resources: Resources
    volumeMounts: list[Mount] = []


class EmptyDir(Section):
    medium: Literal["Memory"] | None = None
    sizeLimit: Quantity


class Volume(Named):
    emptyDir: EmptyDir | None = None
    configMap: Named | None = None

    @model_validator(mode="after")
    def _one(self) -> "Volume":
        assert (self.emptyDir is None) != (self.configMap is None), f"{self.name}: emptyDir or configMap"
        return self


class PodSpec(Section):
    terminationGracePeriodSeconds: int
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def _mounts(self) -> "PodSpec":
        there = {volume.name for volume in self.volumes}
        mounted = {mount.name for container in self.containers for mount in container.volumeMounts}
        assert mounted == there, f"volumes {sorted(there)}, mounted {sorted(mounted)}"
        return self


class Template(Section):
    spec: PodSpec


class HeadGroup(Section):
    rayStartParams: dict[Literal["dashboard-host", "num-cpus"], StrictStr]
    template: Template


class WorkerGroup(Section):
    groupName: StrictStr
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[Literal["num-cpus"], StrictStr]
    template: Template

    @model_validator(mode="after")
    def _order(self) -> "WorkerGroup":
        assert self.minReplicas <= self.replicas <= self.maxReplicas, "minReplicas <= replicas <= maxReplicas"
        return self


class AuthOptions(Section):
    mode: Literal["disabled", "token"]


class RayCluster(Section):
    rayVersion: StrictStr
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]


class RayJobSpec(Section):
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    entrypoint: StrictStr
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    backoffLimit: Annotated[int, Field(ge=0)]
    rayClusterSpec: RayCluster


class RayJob(Section):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Named
    spec: RayJobSpec


class ConfigMap(Section):
    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Named
    data: dict[str, StrictStr]


def rayjob_faults(documents: list[Any]) -> list[str]:
    try:
        job, gate = RayJob.model_validate(documents[0]), ConfigMap.model_validate(documents[1])
    except ValidationError as fault:
        return [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in fault.errors()]
    spec, cluster = job.spec, job.spec.rayClusterSpec
    head, (workers,) = (
        cluster.headGroupSpec.template.spec,
        [g.template.spec for g in cluster.workerGroupSpecs],
    )
    ray, state = head.containers
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    variables = [
        (variable.name, variable.value)
        for pod in (head, workers)
        for container in pod.containers
        for variable in container.env
    ]
    wanted = {
        "token authentication is off": cluster.authOptions.mode == "token",
        "the dashboard is open": cluster.headGroupSpec.rayStartParams.get("dashboard-host") == "127.0.0.1",
        "only a submitter in the head's Pod reaches a dashboard on loopback": spec.submissionMode
        == "SidecarMode",
        "a secret stands in the file": not any(
            value is not None and re.search("KEY|TOKEN|SECRET|PASS|CREDENTIAL", name)
            for name, value in variables
        ),
        "the store's secrets do not reach the ranks": all(
            pod.containers[0].envFrom == [EnvSource(secretRef=Named(name="dna-distill"))]
            for pod in (head, workers)
        ),
        "the operator cannot ask for the state": state.name == "state"
        and any(volume.configMap == gate.metadata for volume in head.volumes),
        "nginx listens to more than the Pod's address": re.findall(
            r"listen (\S+);", gate.data["default.conf.template"]
        )
        == ["${POD_IP}:8265"],
        "Ray is not the pinned one": cluster.rayVersion == pinned("ray"),
        "head and workers differ in their image": ray.image == workers.containers[0].image,
        "the image's tag is not this version": ray.image.endswith(f":{version}"),
        "the head trains": cluster.headGroupSpec.rayStartParams.get("num-cpus") == "0",
        "no shared memory": "/dev/shm"
        in [
            mount.mountPath
            for volume in workers.volumes
            for mount in workers.containers[0].volumeMounts
            if mount.name == volume.name and volume.emptyDir and volume.emptyDir.medium == "Memory"
        ],
        "the operator restarts, too": spec.backoffLimit == 0,
        "the cluster stays": spec.shutdownAfterJobFinishes,
    }
    return [fault for fault, fine in wanted.items() if not fine] + command_faults(spec.entrypoint)


def rayjob() -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text()))


def changed(value: Any, path: str, new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``, keys with spaces between; None removes what is there."""
    result = inner = copy.deepcopy(value)
    *way, last = (int(part) if part.isdigit() else part for part in path.split(" "))
    for part in way:
        inner = inner[part]
    if new is None:
        del inner[last]
    else:
        inner[last] = new
    return result


def test_rayjob() -> None:
    assert rayjob_faults(rayjob()) == []


def test_what_stops_a_run_waits_until_it_has_saved(slurm: str) -> None:
    """The supervisor's grace < the wait of `ray job stop` < Kubernetes' and Slurm's notice."""
    grace = configs.load(ClusterConfig, FOLDER / "ray.yaml").grace_s
    job = RayJob.model_validate(rayjob()[0]).spec.rayClusterSpec.headGroupSpec.template.spec
    (wait,) = (
        int(variable.value or 0)
        for variable in job.containers[0].env
        if variable.name == "RAY_JOB_STOP_WAIT_TIME_S"
    )
    assert grace < wait < job.terminationGracePeriodSeconds
    for name in LAUNCHERS:
        command = " ".join(launcher(name)["head_start_ray_commands"])
        assert re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", command) == [str(wait)]
    (notice,) = re.findall(r"--signal=B:TERM@(\d+)$", slurm, re.MULTILINE)
    assert f"grace_s={grace:g} " in slurm and grace < int(notice)


def test_ray_job_submit_hands_the_entrypoint_on_as_it_is() -> None:
    """With its second `--`, which parts the training command's arguments from the supervisor's."""
    words = shlex.split(rayjob()[0]["spec"]["entrypoint"])
    submitted = ray_submit.make_context("submit", ["--address", "http://127.0.0.1:8265", "--", *words])
    assert list(submitted.params["entrypoint"]) == words


HEAD = "0 spec rayClusterSpec headGroupSpec"
WORKER = "0 spec rayClusterSpec workerGroupSpecs 0"


@pytest.mark.parametrize(
    ("path", "new", "fault"),
    [
        ("0 spec rayClusterSpec authOptions mode", "disabled", "token authentication is off"),
        ("0 spec rayClusterSpec authOptions", None, "authOptions: Field required"),
        (f"{HEAD} rayStartParams dashboard-host", "0.0.0.0", "the dashboard is open"),
        (f"{HEAD} rayStartParams dashboard-host", None, "the dashboard is open"),
        (f"{HEAD} rayStartParams num-cpus", 0, "num-cpus: Input should be a valid string"),
        (f"{HEAD} rayStartParams dashbord-host", "127.0.0.1", "dashbord-host"),
        ("0 spec submissionMode", "K8sJobMode", "only a submitter in the head's Pod"),
        ("0 spec backofLimit", 0, "backofLimit: Extra inputs are not permitted"),
        ("0 spec backoffLimit", 2, "the operator restarts, too"),
        ("0 spec shutdownAfterJobFinishes", False, "the cluster stays"),
        ("0 spec rayClusterSpec rayVersion", "2.59.0", "Ray is not the pinned one"),
        (
            f"{HEAD} template spec containers 0 env 0 name",
            "AWS_SECRET_ACCESS_KEY",
            "a secret stands in the file",
        ),
        (f"{WORKER} template spec containers 0 envFrom", None, "the store's secrets do not reach the ranks"),
        (
            f"{WORKER} template spec containers 0 image",
            "other:0.1.0",
            "head and workers differ in their image",
        ),
        (
            f"{WORKER} template spec containers 0 resources limits nvidia.com/gpu",
            "4",
            "as many GPUs in requests",
        ),
        (
            f"{WORKER} template spec volumes 0 name",
            "shn",
            "volumes ['cache', 'shn'], mounted ['cache', 'shm']",
        ),
        (f"{WORKER} template spec volumes 0 emptyDir medium", None, "no shared memory"),
        (f"{WORKER} minReplicas", 3, "minReplicas <= replicas <= maxReplicas"),
        ("1 metadata name", "other", "the operator cannot ask for the state"),
        ("1 data default.conf.template", "listen 8265;", "nginx listens to more than the Pod's address"),
        (
            "0 spec entrypoint",
            "python -m cluster train",
            "not `python -m cluster train --config FILE … -- …`",
        ),
        (
            "0 spec entrypoint",
            "python -m cluster train --config configs/cluster/ray.yaml -- --config configs/train/no.yaml",
            "configs/train/no.yaml does not exist",
        ),
        (
            "0 spec entrypoint",
            "python -m cluster train --config configs/cluster/ray.yaml -- --config "
            "configs/train/findna.yaml data.url=s3://b/x",
            "data.url: unknown key, did you mean 'uri'?",
        ),
    ],
)
def test_a_rayjob_with_a_mistake_is_refused(path: str, new: Any, fault: str) -> None:
    assert fault in "\n".join(rayjob_faults(changed(rayjob(), path, new)))


@contextlib.contextmanager
def gate(folder: Path) -> Iterator[str]:
    """nginx with the RayJob's rules before a server that answers with the method, path and token of each
    request."""

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.command} {self.path} {self.headers['x-ray-authorization']}".encode())

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = free_port()
        rules = rayjob()[1]["data"]["default.conf.template"].replace("${POD_IP}:8265", f"127.0.0.1:{port}")
        (folder / "rules.conf").write_text(rules.replace("127.0.0.1:8265", f"127.0.0.1:{server.server_port}"))
        (folder / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log; events {{}} "
            f"http {{ access_log off; include {folder}/rules.conf; }}"
        )
        nginx = subprocess.Popen(
            [NGINX or "", "-p", str(folder), "-c", str(folder / "nginx.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: answers(port) or nginx.poll() is not None, "nginx")
            assert nginx.poll() is None, (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.kill()
            nginx.wait()
            server.shutdown()


NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.mark.skipif(not NGINX, reason="needs nginx")
def test_the_gate_lets_questions_about_the_job_through_and_nothing_else(tmp_path: Path) -> None:
    def ask(method: str, path: str) -> str:
        request = urllib.request.Request(
            url + path,
            method=method,
            headers={"x-ray-authorization": "Bearer t"},
            data=b"{}" if method == "POST" else None,
        )
        try:
            return str(urllib.request.urlopen(request, timeout=10).read().decode())
        except urllib.error.HTTPError as refusal:
            return str(refusal.code)

    with gate(tmp_path) as url:
        assert ask("GET", "/api/jobs/findna-x7_2") == "GET /api/jobs/findna-x7_2 Bearer t"
        assert ask("POST", "/api/jobs/findna-x7_2/stop") == "POST /api/jobs/findna-x7_2/stop Bearer t"
        for method, path in [
            ("GET", "/"),
            ("GET", "/api/jobs/"),
            ("POST", "/api/jobs/"),
            ("GET", "/logs"),
            ("POST", "/api/jobs/findna"),
            ("DELETE", "/api/jobs/findna"),
            ("GET", "/nodes"),
            ("GET", "/api/jobs/findna/logs"),
            ("GET", "/api/jobs/findna/stop"),
            ("GET", "/api/jobs/../v0/logs"),
            ("GET", "/api/jobs/..%2Fv0%2Flogs"),
        ]:
            assert ask(method, path) == "403", (method, path)
        assert ask("GET", "/api/jobs/a%2F..%2Fb") == "GET /api/jobs/b Bearer t", (
            "what was matched is not what goes on"
        )


# --- Ray's cluster launcher


def launcher_faults(config: dict[str, Any]) -> list[str]:
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except (jsonschema.ValidationError, ValueError, click.ClickException, SystemExit) as fault:
        return [f"Ray's validator: {getattr(fault, 'message', fault)}"]
    faults = []
    files = set(config["file_mounts"])
    for part in ("head", "worker"):
        (command,) = [line for line in config[f"{part}_start_ray_commands"] if "ray start" in line]
        if subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode:
            faults.append(f"{part}: bash does not parse {command}")
            continue
        before, _, after = command.partition("ray start")
        set_here = dict(word.split("=", 1) for word in shlex.split(before) if re.match(r"\w+=", word))
        if set_here.get("RAY_AUTH_MODE") != "token":
            faults.append(f"{part}: token authentication is off")
        if set_here.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token") not in files:
            faults.append(f"{part}: no token gets there")
        try:
            given = ray_start.make_context("start", shlex.split(after)).params
        except click.ClickException as fault:
            faults.append(f"{part}: {fault.format_message()}")
            continue
        if part == "head" and given["dashboard_host"] != "127.0.0.1":
            faults.append("head: the dashboard is open")
        if part == "head" and (given["num_cpus"], given["num_gpus"]) != (0, 0):
            faults.append("head: it trains")
        if (part == "head") != given["head"]:
            faults.append(f"{part}: --head")
    if "RAY_AUTH_TOKEN=" in str(config) or re.search("AWS_SECRET|PASSWORD", str(config)):
        faults.append("a secret stands in the file")
    rules = config["provider"].get("security_group", {}).get("IpPermissions", [])
    if any((rule["FromPort"], rule["ToPort"]) != (22, 22) for rule in rules):
        faults.append("the security group opens more than ssh")
    if any(
        re.search(r"(^|\s)(-p|--publish)", option)
        for option in config.get("docker", {}).get("run_options", [])
    ):
        faults.append("docker publishes a port")
    return faults


def launcher(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher(name: str) -> None:
    assert launcher_faults(launcher(name)) == []


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "head: the dashboard is open"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "worker: token authentication is off"),
        ("auth_token: ~", "auth_tokens: ~", "worker: no token gets there"),
        ("--disable-usage-stats", "--disable-usage-stat", "No such option"),
        ("&& ulimit", "&& ( ulimit", "bash does not parse"),
        ("--num-cpus=0", "--num-cpus=8", "head: it trains"),
        ("cluster_name:", "cluster_nam:", "Ray's validator: "),
        ("upscaling_speed: 1.0", "upscaling_speed: fast", "Ray's validator: 'fast' is not of type 'number'"),
        (
            "idle_timeout_minutes",
            "idle_timeout_seconds",
            "Ray's validator: Additional properties are not allowed",
        ),
    ],
)
def test_a_launcher_file_with_a_mistake_is_refused(name: str, old: str, new: str, fault: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert old in text
    assert fault in "\n".join(launcher_faults(yaml.safe_load(text.replace(old, new))))


@pytest.mark.parametrize(
    ("path", "new", "fault"),
    [
        ("provider security_group IpPermissions 0 ToPort", 8265, "the security group opens more than ssh"),
        ("docker run_options 0", "-p 8265:8265", "docker publishes a port"),
        ("head_node_type", "none", "Ray's validator: `head_node_type` must be one of `available_node_types`"),
        (
            "available_node_types trainer min_workers",
            9,
            "Ray's validator: The specified global `max_workers` is smaller",
        ),
    ],
)
def test_an_aws_file_with_a_mistake_is_refused(path: str, new: Any, fault: str) -> None:
    assert fault in "\n".join(launcher_faults(changed(launcher("ray-aws"), path, new)))


def test_the_onprem_file_waits_for_all_of_its_hosts() -> None:
    config = launcher("ray-onprem")
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


# --- Slurm

SUPERVISOR = """#!/bin/bash
printf '%s\\n' "$@" > args
for word in "$@"; do case $word in launch.hostfile=*) cp "${word#*=}" hosts;; esac; done
if [ -n "$CODE_AT_ONCE" ]; then exit "$CODE_AT_ONCE"; fi
trap 'echo told >> told; sleep 0.3; exit 75' TERM
touch ready
while :; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
case "$*" in
"show hostnames n[1-2]") printf 'n1\\nn2\\n';;
"requeue 7") echo "requeue 7" >> requeued; exit "${REQUEUE_CODE:-0}";;
*) echo "scontrol $*?" >&2; exit 1;;
esac
"""
SQUEUE = """#!/bin/bash
[ "$*" = "--noheader --format=%T --jobs=7" ] && echo "${STATE:-RUNNING}"
"""


@dataclass
class Ended:
    code: int
    said: str
    told: int  # times that the supervisor got SIGTERM
    requeued: int
    args: list[str] = field(default_factory=list)
    hosts: str = ""


def catches_term(pid: int) -> bool:
    (caught,) = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) & 1 << signal.SIGTERM - 1)


def run_slurm(folder: Path, script: str, *, term: bool = True, **environment: str) -> Ended:
    """The script with toys in the place of Slurm's commands and of the supervisor; SIGTERM once that one is
    up."""
    for name, text in (("python", SUPERVISOR), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (folder / "slurm.sh").write_text(script)
    environment = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_GPUS_ON_NODE": "8",
        "CODE_AT_ONCE": "",
    } | environment
    log = folder / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            ["bash", "slurm.sh", "--config", "configs/train/findna.yaml", "run.dir=s3://b/a b"],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=signals.hear,
        )
    try:
        if term:
            wait_for(
                lambda: (folder / "ready").exists() or process.poll() is not None, f"it: {log.read_text()}"
            )
            wait_for(lambda: "' TERM" not in script or catches_term(process.pid), "the trap")
            process.send_signal(signal.SIGTERM)  # to the script alone, as B: says
        process.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # a script that forgets its supervisor leaves it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def lines(name: str) -> list[str]:
        path = folder / name
        return path.read_text().splitlines() if path.exists() else []

    return Ended(
        process.returncode,
        log.read_text(),
        len(lines("told")),
        len(lines("requeued")),
        lines("args"),
        "\n".join(lines("hosts")),
    )


@pytest.fixture
def slurm() -> str:
    return (FOLDER / "slurm.sh").read_text()


def slurm_faults(script: str) -> list[str]:
    faults = []
    parsed = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
    if parsed.returncode:
        faults.append(f"bash -n: {parsed.stderr}")
    lines = script.splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    if lines[0] != "#!/bin/bash":
        faults.append("no #!/bin/bash: Slurm refuses it")
    if lines[first] != "set -euo pipefail":
        faults.append("a command that fails is passed over")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", "\n".join(lines[:first]), re.MULTILINE))
    if len(options) != sum(line.startswith("#SBATCH") for line in lines):
        faults.append("an #SBATCH line that Slurm passes over")
    for name, value in (
        ("signal", "B:TERM@120"),
        ("requeue", ""),
        ("no-kill", ""),
        ("open-mode", "append"),
        ("ntasks-per-node", "1"),
    ):
        if options.get(name) != value:
            faults.append(f"#SBATCH --{name} is {options.get(name)}")
    if re.search(r"\bssh\b", re.sub("#.*", "", script)):
        faults.append("ssh")
    return faults


def test_slurm_script(slurm: str) -> None:
    assert slurm_faults(slurm) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("fi\nexit", "\nexit", "bash -n: "),
        ("#!/bin/bash\n", "#!/usr/bin/env bash\n\n", "no #!/bin/bash"),
        ("set -euo pipefail", "set -eu", "a command that fails is passed over"),
        ("#SBATCH --requeue\n", "", "#SBATCH --requeue is None"),
        ("--signal=B:TERM@120", "--signal=TERM@120", "#SBATCH --signal is TERM@120"),
        ("pipefail\n", "pipefail\n#SBATCH --mem=1\n", "an #SBATCH line that Slurm passes over"),
        ("srun --overlap", "ssh", "ssh"),
    ],
)
def test_a_slurm_script_with_a_mistake_is_refused(slurm: str, old: str, new: str, fault: str) -> None:
    assert old in slurm
    assert fault in "\n".join(slurm_faults(slurm.replace(old, new)))


def test_slurm_passes_sigterm_on_waits_and_requeues(slurm: str, tmp_path: Path) -> None:
    (tmp_path / ".dna-distill.env").write_text("AWS_SECRET_ACCESS_KEY=abc\n")
    ended = run_slurm(tmp_path, slurm)
    assert (ended.code, ended.told, ended.requeued) == (75, 1, 1), ended.said
    assert ended.hosts == "n1 slots=8\nn2 slots=8"
    hosts = next(word for word in ended.args if word.startswith("launch.hostfile="))
    assert not Path(hosts.partition("=")[2]).exists(), "the host file is left behind"
    assert "abc" not in " ".join(ended.args)


def test_what_slurm_starts_parses(slurm: str, tmp_path: Path) -> None:
    ended = run_slurm(tmp_path, slurm, term=False, CODE_AT_ONCE="0")
    (tmp_path / "hosts.copy").write_text(ended.hosts)
    words = [
        "python",
        *(
            re.sub("^launch.hostfile=.*", f"launch.hostfile={tmp_path}/hosts.copy", word)
            for word in ended.args
        ),
    ]
    assert command_faults(shlex.join(words)) == []
    assert words[-1] == "run.dir=s3://b/a b", "an argument was split"
    assert any(word.startswith("launch.remote=srun ") and "{host}" in word for word in words)


@pytest.mark.parametrize(
    ("environment", "code", "requeued"),
    [
        ({"CODE_AT_ONCE": "0"}, 0, 0),
        ({"CODE_AT_ONCE": "1"}, 1, 0),
        ({"CODE_AT_ONCE": "2"}, 2, 0),
        ({"CODE_AT_ONCE": "75"}, 75, 1),
        ({"CODE_AT_ONCE": "75", "STATE": "CANCELLED"}, 75, 0),
        ({"CODE_AT_ONCE": "75", "REQUEUE_CODE": "1"}, 75, 1),
    ],
)
def test_slurm_requeues_only_what_was_saved_to_be_continued(
    slurm: str, tmp_path: Path, environment: dict[str, str], code: int, requeued: int
) -> None:
    ended = run_slurm(tmp_path, slurm, term=False, **environment)
    assert (ended.code, ended.requeued) == (code, requeued), ended.said
    assert ("not requeued: submit it again" in ended.said) == ("REQUEUE_CODE" in environment)


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        (
            "trap 'told=yes; kill -TERM \"$supervisor\" 2>/dev/null || true' TERM",
            "",
            lambda ended: ended.told == 0,
        ),
        ("[[ $code -eq 143 ]] || break", "break", lambda ended: ended.code == 143),
        ("$code -eq 75", "$code -eq 76", lambda ended: ended.requeued == 0),
    ],
)
def test_a_slurm_script_without_one_of_its_parts_ends_otherwise(
    slurm: str, tmp_path: Path, old: str, new: str, broken: Callable[[Ended], bool]
) -> None:
    assert old in slurm
    assert broken(run_slurm(tmp_path, slurm.replace(old, new)))
