"""The training command: config, device and process group of this rank, then the run; its exit code."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import configs
from cluster.process import host, world
from cluster.process.command import exit_code
from cluster.process.exits import ElsewhereError
from cluster.process.heartbeat import heartbeat
from cluster.process.memory import keep_freed_memory
from cluster.process.signals import StopSignals
from cluster.process.world import World
from trainer.core import collectives
from trainer.core.collectives import Group
from trainer.engine.process_group import init_distributed, leave_distributed
from trainer.run.config import TrainConfig
from trainer.run.hooks import Hook
from trainer.run.train import train


@dataclass(frozen=True)
class _Process:
    """A rank's process; ``host``: the machine, and the space in it that pids are of."""

    host: str
    pid: int


def launch(
    config_path: str, overrides: Sequence[str], *, debug: bool = False, hooks: Sequence[Hook] = ()
) -> int:
    """The exit code of this rank's training; what went wrong is one sentence on stderr, unless ``debug``.

    ``hooks``: called after each step, as ``train`` has it.
    """
    here = world.world_from_env()

    def run() -> int:
        config = configs.load(TrainConfig, config_path, overrides)
        config.refuse_lost()
        device = _prepare_device(here)
        with heartbeat.inside("meeting the other ranks", phase=True):
            init_distributed(device)
        return _train_among_peers(config, device, hooks, debug=debug)

    return exit_code(
        run,
        debug=debug,
        main=here.is_main,
        interrupted="the same command goes on from the newest checkpoint, if there is one",
    )


def _train_among_peers(
    config: TrainConfig, device: torch.device, hooks: Sequence[Hook], *, debug: bool
) -> int:
    """The exit code of the run. Where other ranks are gone, the first that is left says so, unless
    ``debug``."""
    group = Group.of()
    stops = StopSignals(peers=_pids_of_this_host(group), supervised=heartbeat.watched)
    ended = False
    try:
        code = train(config, device=device, group=group, stops=stops, hooks=hooks)
        ended = True
    except RuntimeError as fault:
        if (lost := collectives.lost_peers(fault)) and not debug:
            raise (RuntimeError if stops.reports_lost_peers() else ElsewhereError)(lost) from fault
        raise
    finally:
        stops.close()
        leave_distributed(together=ended)
    return code


def _prepare_device(here: World) -> torch.device:
    """The device of this rank, made the current one; on a CPU its share of the threads."""
    if torch.cuda.is_available():
        device = torch.device("cuda", here.local_rank)
        torch.cuda.set_device(device)
        return device
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or here.size)
    torch.set_num_threads(host.threads_per_process(processes))
    keep_freed_memory()
    return torch.device("cpu")


def _pids_of_this_host(group: Group) -> list[int]:
    """The pids of all ranks that run on this host, in rank order; a collective."""
    pid_namespace = os.stat("/proc/self/ns/pid").st_ino
    own = _Process(f"{socket.gethostname()} {pid_namespace}", os.getpid())
    return [process.pid for process in collectives.gather_objects(group, own) if process.host == own.host]
