"""A process that reads labelled tasks and fits for a training run, which starts it
(trainer/run/fit_process.py).

On stdin come pickled pairs: READ with what is to be read, then FIT with the embeddings of each task, reading
by reading. To stdout goes a pickled answer to each: the rows, or the scores and the seconds that they took;
Refused; or a text, what went wrong.
"""

import os
import pickle
import sys
import time
from typing import Any

from cluster.process.exits import EXIT_OK
from configs import ConfigError
from trainer.evaluation.online.fitting import floor_of, scores_of
from trainer.evaluation.online.messages import FIT, READ, Refused
from trainer.evaluation.online.rows import OnlineTask, read_tasks


class Fitter:
    """What the process knows: the tasks that it has read, and their floors from the first fit on."""

    def __init__(self) -> None:
        self._tasks: list[OnlineTask] = []
        self._floors: list[float] = []

    def answer(self, what: str, given: Any) -> Any:
        try:
            return self._read(*given) if what == READ else self._fit(what, given)
        except ConfigError as fault:
            return Refused(str(fault))
        except Exception as fault:  # whatever a library raises is the training's to report
            return f"{type(fault).__name__}: {' '.join(str(fault).split())}"

    def _read(self, paths: tuple[str, ...], most: int) -> Any:
        self._tasks, self._floors = read_tasks(paths, most=most), []
        return [task.rows() for task in self._tasks]

    def _fit(self, what: str, given: Any) -> Any:
        assert what == FIT, what
        started = time.monotonic()
        self._floors = self._floors or [floor_of(task) for task in self._tasks]
        told = zip(self._tasks, given, self._floors, strict=True)
        scores = [scores_of(task, embeddings, floor=floor) for task, embeddings, floor in told]
        return scores, time.monotonic() - started


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
