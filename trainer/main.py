"""Pretraining: ``deepspeed trainer/main.py --config configs/train/demo.yaml [key=value ...]``, or plain
python.

The same command goes on with a run that was stopped, from the newest checkpoint in run.dir.
"""

import argparse
import os
import socket
import sys
import zlib
from pathlib import Path

# Running this file puts trainer/ first on the path, where its modules would be imported a second time.
_ROOT = Path(__file__).resolve().parent.parent
sys.path = [str(_ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT / "trainer")]

# Where a peer is gone torch would print pages of C++; what it means is said in a sentence.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch  # noqa: E402

import configs  # noqa: E402
from cluster.process import host, world  # noqa: E402
from cluster.process.command import exit_code  # noqa: E402
from cluster.process.exits import ElsewhereError  # noqa: E402
from cluster.process.heartbeat import heartbeat  # noqa: E402
from cluster.process.signals import StopSignals  # noqa: E402
from trainer.core import collectives  # noqa: E402
from trainer.core.collectives import Group  # noqa: E402
from trainer.engine.engine import init_distributed, leave_distributed  # noqa: E402
from trainer.run.config import TrainConfig  # noqa: E402
from trainer.run.train import train  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see configs/train/")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # given by the launcher
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of the config, dotted keys"
    )
    args = parser.parse_args(arguments)
    here = world.world_from_env()

    def run() -> int:
        config = configs.load(TrainConfig, args.config, args.overrides)
        config.refuse_lost()
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or here.size)
        device = torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(host.threads_per_process(local_size))
        with heartbeat.inside("meeting the other ranks", phase=True):
            init_distributed(device)
        group = Group.of()
        stops = StopSignals(peers=_of_this_host(group, device), supervised=heartbeat.watched)
        done = False
        try:
            code = train(config, device=device, group=group, stops=stops)
            done = True
        except RuntimeError as fault:
            if (lost := collectives.lost_peers(fault)) and not args.debug:
                raise (RuntimeError if stops.reports_lost_peers() else ElsewhereError)(lost) from fault
            raise
        finally:
            stops.close()
            leave_distributed(together=done)
        return code

    return exit_code(
        run,
        debug=args.debug,
        main=here.is_main,
        interrupted="the same command goes on from the newest checkpoint",
    )


def _of_this_host(group: Group, device: torch.device) -> list[int]:
    """The pids of all ranks that run on this host; a collective."""
    host = zlib.crc32(f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}".encode())
    mine = torch.tensor([host, os.getpid()], device=device)
    everywhere = collectives.gather_packed(group, {"process": mine})["process"]
    return [pid for other, pid in everywhere.tolist() if other == host]


if __name__ == "__main__":
    sys.exit(main())
