"""Rank and number of processes. Only this file reads them from the environment."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Rank of this process, number of processes, and rank among the processes of its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def world_from_env() -> World:
    """As the launcher has set them (RANK, WORLD_SIZE, LOCAL_RANK); a single process without a launcher."""
    rank, size, local = (
        int(os.environ.get(key, default))
        for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return World(rank, size, local)
