"""``python -m cluster train`` and ``python -m cluster doctor``; each has ``--help``."""

import sys

from cluster.doctor import checks
from cluster.launch import supervise

COMMANDS = {"train": supervise.main, "doctor": checks.main}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: python -m cluster {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
