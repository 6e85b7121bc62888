"""How the tasks of a build run: on how many workers, and to whom they report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.process.progress import OnProgress
from cluster.tasks import jobs
from cluster.tasks.places import Homes

R = TypeVar("R")

OnRetry = Callable[[str], None]  # given what is tried again, and why


@dataclass(frozen=True)
class Runner:
    """``workers`` at once (None: one for each CPU). ``homes``: which nodes have prepared which reference."""

    workers: int | None
    on_progress: OnProgress
    on_retry: OnRetry
    homes: Homes = field(default_factory=Homes)

    def near(self, uri: Callable[[Any], str]) -> jobs.Near:
        """Tasks that read the reference of one ``uri`` stay together, since a node prepares it only once."""
        return jobs.Near(uri, self.homes)

    def run(
        self,
        function: Callable[..., R],
        tasks: Sequence[Any],
        *,
        names: Sequence[str],
        uri: Callable[[Any], str],
        on_result: Callable[[int, R], None] | None = None,
    ) -> list[R]:
        """As ``jobs.run``; ``names``: of the tasks, for messages of retries; ``uri``: of the reference that a
        task reads."""
        return jobs.run(
            function,
            tasks,
            workers=self.workers,
            on_result=on_result,
            near=self.near(uri),
            on_retry=lambda index, reason: self.on_retry(f"{names[index]}: {reason}"),
        )
