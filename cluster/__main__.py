"""``python -m cluster train`` and ``python -m cluster doctor``; each has ``--help``."""

import sys

from cluster.doctor import checks
from cluster.launch import supervise

COMMANDS = {
    "train": (supervise.main, "supervised training on one machine, hosts or a Ray cluster"),
    "doctor": (checks.main, "what a machine or cluster can do, and what is missing"),
}


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        return COMMANDS[name][0](arguments[1:])
    asked = name in ("-h", "--help")
    if name and not asked:
        print(f"error: unknown command {name!r}", file=sys.stderr)
    text = "\n".join(f"  {command:<7} {purpose}" for command, (_, purpose) in COMMANDS.items())
    print(f"usage: python -m cluster {{{','.join(COMMANDS)}}} ...\n\n{text}", file=sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
