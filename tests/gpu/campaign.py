"""``python -m tests.gpu.campaign --out FOLDER``: all that is to be proven and measured on a GPU, in one
script.

Stages, in this order: peaks (matrix products, layers, copies), kernels (ours against fp64), tests (the rest
of tests/gpu), steps (the ladder of MFU: time, MFU, memory and kernels of training steps and of their parts,
eager, with our kernels, compiled), compiled (its losses against the plain ones), contrastive (time and memory
of the loss). FOLDER/campaign.json is written anew after each row of each stage, so that a run that is cut
short still proves something; the same command goes on where it ended. Exit code 0: all is done. 1: a stage
failed. 75: time was up, and stages are left.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from cluster.process.exits import EXIT_FAILED, EXIT_OK, EXIT_PREEMPTED
from tests.gpu import contrastive_cost, peaks, speed
from tests.ranks import on_ranks

ROOT = Path(__file__).resolve().parents[2]
RESULT, REPORT = "campaign.json", "campaign.md"
KERNELS, COMPILED = "tests/gpu/test_mixer_kernels.py", "tests/gpu/test_compiled.py"
_TESTS_S = 240.0  # for tests/gpu, so that a hang leaves time for the rest
_KERNELS_S = 60.0
_COMPILED_TESTS_S = 180.0  # most of it Inductor's
_ROW_S = 25.0  # a row that is begun later than so long before the limit would be cut


class Campaign:
    """Results so far, by stage and row, and the time that is left."""

    def __init__(self, out: Path, *, rehearse: bool, limit_s: float, resume: Path | None) -> None:
        self.out, self.rehearse = out, rehearse
        self.device = "cpu" if rehearse else "cuda"
        self._end = time.monotonic() + limit_s
        out.mkdir(parents=True, exist_ok=True)
        if resume and resume.is_file() and not (out / RESULT).exists():
            shutil.copy(resume, out / RESULT)
        self.results: dict[str, Any] = (
            json.loads((out / RESULT).read_text()) if (out / RESULT).exists() else {}
        )

    @property
    def limit_s(self) -> float:
        """How long a row may take: the time that is left; a rehearsal has time."""
        return 600 if self.rehearse else max(30.0, self._end - time.monotonic())

    def rows(
        self, stage: str, rows: dict[str, Callable[[], Any]], *, needs_s: dict[str, float] | None = None
    ) -> Iterator[str]:
        """Run each of ``rows`` that has not been run and for which there is time; the names of those that are
        run. ``needs_s``: of a row that may take longer than others."""
        for name, measure in rows.items():
            found = self.results.setdefault(stage, {})
            if name in found and "fault" not in found[name]:
                continue
            needed_s = (needs_s or {}).get(name, _ROW_S)
            if not self.rehearse and time.monotonic() > self._end - needed_s:
                continue  # a later row may be a short one
            start = time.monotonic()
            try:
                row = measure()
            except (AssertionError, RuntimeError, OSError, ValueError) as fault:  # the next row may do better
                row = {"fault": f"{type(fault).__name__}: {fault}"[-3000:]}
            found[name] = row | {"seconds": round(time.monotonic() - start, 1)}
            self.write()
            yield name

    def write(self) -> None:
        """The results, and the same as tables."""
        part = self.out / (RESULT + ".part")
        part.write_text(json.dumps(self.results, indent=1) + "\n")
        part.replace(self.out / RESULT)
        (self.out / REPORT).write_text(tables(self.results))

    def rank(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function`` in a process of its own, which leaves nothing on the GPU."""
        return on_ranks(1, function, *args, timeout_s=self.limit_s, gpu=not self.rehearse)[0]


def stages(campaign: Campaign) -> dict[str, dict[str, Callable[[], Any]]]:
    """Stage -> row -> what measures it."""
    c, small = campaign, campaign.rehearse
    sizes = (1 << 8,) if small else (1 << 12, 1 << 14, 1 << 16, 1 << 18)
    settings = speed.REHEARSED if small else speed.SETTINGS
    apart = [] if small else [f"--ignore={path}" for path in (KERNELS, COMPILED)]
    return {
        "machine": {"machine": machine},
        "peaks": {"peaks": lambda: c.rank(measured_peaks, c.device, small)},
        "kernels": {KERNELS: lambda: tests(c, KERNELS, limit_s=_KERNELS_S)},
        "tests": {"tests/gpu": lambda: tests(c, "tests/gpu", *apart, limit_s=_TESTS_S)},
        "steps": {s.name: lambda s=s: c.rank(measured_steps, s, c.device, small) for s in settings},
        "compiled": {COMPILED: lambda: tests(c, COMPILED, limit_s=_COMPILED_TESTS_S)},
        "contrastive": {
            f"{task}, G = {rows}": lambda task=task, rows=rows: c.rank(costs, task, rows, c.device, small)
            for rows in sizes
            for task in contrastive_cost.TASKS
        },
    }


def machine() -> dict[str, Any]:
    """What the figures are of."""
    gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if gpu else None
    return {
        "gpu": properties.name if properties else None,
        "gpu_bytes": properties.total_memory if properties else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpu else None,
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
    }


def measured_peaks(device: str, small: bool) -> dict[str, Any]:
    return peaks.measure(device, small=small)


def measured_steps(setting: speed.Setting, device: str, small: bool) -> dict[str, Any]:
    return speed.measure(setting, device, small=small)


def costs(task: str, rows: int, device: str, small: bool) -> dict[str, Any]:
    """ms and bytes of each way to compute one of TASKS; None where it does not fit."""
    ours, naive = contrastive_cost.TASKS[task]
    ways = {"ours": ours, "naive": naive}
    if not small and rows <= 1 << 14:  # compiling takes seconds
        ways["naive, compiled"] = torch.compile(naive, dynamic=False)
    turns = 1 if small or rows > 1 << 16 else 3
    found = {way: contrastive_cost.cost(loss, rows, device, turns=turns) for way, loss in ways.items()}
    return {way: cost and cost._asdict() for way, cost in found.items()}


def tests(campaign: Campaign, path: str, *options: str, limit_s: float) -> dict[str, Any]:
    """Counts of the tests in ``path``, and which failed; {"skipped": why} where there are none."""
    if not (ROOT / path).exists():
        return {"skipped": f"this version has no {path}"}
    if campaign.rehearse and path in (KERNELS, COMPILED):
        return {"skipped": "only a GPU can run it; a rehearsal collects it with the rest of tests/gpu"}
    report, log = campaign.out / "tests.xml", campaign.out / "tests.log"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        path,
        *options,
        "-p",
        "no:cacheprovider",
        "--durations=25",
        f"--junitxml={report}",
    ]
    environment = os.environ | ({"DNA_GPU_REHEARSE": "1"} if campaign.rehearse else {})
    limit_s = min(campaign.limit_s, limit_s)
    with log.open("w") as said:
        pytest = subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = pytest.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(pytest.pid, signal.SIGKILL)  # ranks, too, or they go on beside what is timed next
            pytest.wait()
            return {"fault": "time was up", "log": log.read_text()[-2000:]}
    if not report.exists():
        return {"fault": f"pytest ended with {code}", "log": log.read_text()[-2000:]}
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    found: dict[str, Any] = {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "names of the failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
    }
    if code:
        found["fault"] = f"pytest ended with {code}"
    return found


def tables(results: dict[str, Any]) -> str:
    """Each stage as a table in Markdown, a line a row."""
    lines = []
    for stage, rows in results.items():
        lines += [f"## {stage}", ""]
        for name, row in rows.items():
            flat = {key: value for key, value in row.items() if key not in ("kernels", "log")}
            lines.append(
                f"- **{name}**: " + ", ".join(f"{key} {_told(value)}" for key, value in flat.items())
            )
        lines.append("")
    return "\n".join(lines)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_told(of)}" for key, of in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.campaign", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the results; at most 4 files")
    parser.add_argument("--resume", type=Path, help="the campaign.json of a run before, where --out has none")
    parser.add_argument("--stages", default="", help="only these, by name, with commas between")
    parser.add_argument("--rows", default="", help="only rows whose names have one of these, with ; between")
    parser.add_argument(
        "--limit-s", type=float, default=330.0, help="begin no row near its end (%(default)s)"
    )
    parser.add_argument("--rehearse", action="store_true", help="every stage small, on a CPU")
    parser.add_argument(
        "--pack", type=Path, metavar="FOLDER", help="make the folder that must travel to the machine"
    )
    parser.add_argument("--python", default="3.12", help="its version there, for --pack (%(default)s)")
    args = parser.parse_args(arguments)
    if args.pack:
        from tests.gpu.pack import pack

        pack(args.pack, python=args.python)
        return EXIT_OK
    if not args.out:
        parser.error("--out is needed")
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("no NVIDIA GPU on this machine; --rehearse runs every stage small, on a CPU")
    campaign = Campaign(args.out, rehearse=args.rehearse, limit_s=args.limit_s, resume=args.resume)
    known = stages(campaign)
    if asked := [text.strip() for text in args.rows.split(";") if text.strip()]:
        known = {
            stage: {name: row for name, row in rows.items() if any(text in name for text in asked)}
            for stage, rows in known.items()
        }
    wanted = [name for name in args.stages.split(",") if name] or list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"unknown stages {', '.join(unknown)}; known are {', '.join(known)}")
    needs_s = {setting.name: setting.seconds for setting in speed.SETTINGS} | {COMPILED: _COMPILED_TESTS_S}
    for stage in wanted:
        for name in campaign.rows(stage, known[stage], needs_s=needs_s):
            print(f"{stage}: {name}: {campaign.results[stage][name]['seconds']} s", flush=True)
    print(tables(campaign.results))
    done = {stage: campaign.results.get(stage, {}) for stage in wanted}
    if any("fault" in row for rows in done.values() for row in rows.values()):
        return EXIT_FAILED
    return EXIT_OK if all(done[stage].keys() >= known[stage].keys() for stage in wanted) else EXIT_PREEMPTED


if __name__ == "__main__":
    sys.exit(main())
