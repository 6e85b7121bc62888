"""``python -m cluster train``, ``finetune``, ``study`` and ``doctor``; each has ``--help``."""

import runpy
import sys
from typing import NoReturn

from cluster.doctor import checks
from cluster.launch import supervise

COMMANDS = {
    "train": (supervise.main, "supervised training on one machine, hosts or a Ray cluster"),
    "doctor": (checks.main, "what a machine or cluster can do, and what is missing"),
}
PROGRAMS = {  # of other floors, which this one knows by the names of their modules alone
    "study": (
        "trainer.study",
        "arms pretrained at equal FLOPs, all labelled tasks, one report that compares them",
    ),
    "finetune": ("trainer.workers", "a registered model on labelled tasks, on a local Ray or a Ray cluster"),
}


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        return COMMANDS[name][0](arguments[1:])
    if name in PROGRAMS:
        _run(PROGRAMS[name][0], arguments[1:])
    asked = name in ("-h", "--help")
    if name and not asked:
        print(f"error: unknown command {name!r}", file=sys.stderr)
    listed = {command: purpose for command, (_, purpose) in [*COMMANDS.items(), *PROGRAMS.items()]}
    text = "\n".join(f"  {command:<8} {purpose}" for command, purpose in listed.items())
    print(f"usage: python -m cluster {{{','.join(listed)}}} ...\n\n{text}", file=sys.stderr)
    return 0 if asked else 2


def _run(module: str, arguments: list[str]) -> NoReturn:
    """As ``python -m module``, in this process, which ends by SystemExit."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
