"""A process that fits for a training run beside it, which starts it (trainer/run/fit_process.py).

On stdin come pickled pairs: TASKS with the tasks, then EMBEDDINGS with those of each task, reading by
reading. To stdout goes a pickled answer to each: the floors, or the scores, and the seconds; or a text, what
went wrong.
"""

import os
import pickle
import sys
import time
from typing import Any

from cluster.process.exits import EXIT_OK
from trainer.evaluation.online.fitting import EMBEDDINGS, TASKS, floor_of, scores_of
from trainer.evaluation.online.rows import OnlineTask


class Fitter:
    """What the process knows: the tasks that it was told of."""

    def __init__(self) -> None:
        self._tasks: list[OnlineTask] = []

    def answer(self, what: str, given: Any) -> Any:
        """(floors or scores of the tasks, seconds), or a text."""
        started = time.monotonic()
        try:
            if what == TASKS:
                self._tasks = given
                found: Any = [floor_of(task) for task in self._tasks]
            else:
                assert what == EMBEDDINGS, what
                pairs = zip(self._tasks, given, strict=True)
                found = [scores_of(task, embeddings) for task, embeddings in pairs]
        except Exception as fault:  # whatever a library raises is the training's to report
            return f"{type(fault).__name__}: {' '.join(str(fault).split())}"
        return found, time.monotonic() - started


def main() -> int:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    fitter = Fitter()
    while True:
        try:
            what, given = pickle.load(sys.stdin.buffer)
        except EOFError:  # the training is over
            return EXIT_OK
        pickle.dump(fitter.answer(what, given), answers)
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
