"""Pretraining: ``deepspeed trainer/main.py --config configs/train/demo.yaml [key=value ...]``, or plain
python.

The same command goes on with a run that was stopped, from the newest checkpoint in run.dir.
"""

import argparse
import os
import sys
from pathlib import Path

# Running this file puts trainer/ first on the path, where its modules would be imported a second time.
_ROOT = Path(__file__).resolve().parent.parent
sys.path = [str(_ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT / "trainer")]

# Where a peer is gone torch would print pages of C++; one sentence of ours says what it means.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from trainer.run.launch import launch  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see configs/train/")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # given by the launcher
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of the config, dotted keys"
    )
    args = parser.parse_args(arguments)
    return launch(args.config, args.overrides, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
