"""How the tasks of a build run: on how many workers, and to whom they report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.process.progress import OnProgress
from cluster.tasks import jobs

R = TypeVar("R")

OnRetry = Callable[[str], None]  # given what is tried again, and why


@dataclass(frozen=True)
class Runner:
    """``workers`` at once (None: one for each CPU)."""

    workers: int | None
    on_progress: OnProgress
    on_retry: OnRetry

    def run(
        self,
        function: Callable[..., R],
        tasks: Sequence[Any],
        *,
        names: Sequence[str],
        on_result: Callable[[int, R], None] | None = None,
    ) -> list[R]:
        """As ``jobs.run``; ``names``: of the tasks, for messages of retries."""
        return jobs.run(
            function,
            tasks,
            workers=self.workers,
            on_result=on_result,
            on_retry=lambda index, reason: self.on_retry(f"{names[index]}: {reason}"),
        )
