"""The largest number of ranks that the training config allows, as the config's ``fit`` program says."""

import subprocess
import sys
from collections.abc import Sequence

from cluster.launch.config import ClusterConfig
from cluster.process.exits import EXIT_USAGE, error_in
from configs import ConfigError


class WorldSizes:
    """Asks the program once for each number of places."""

    def __init__(self, config: ClusterConfig, arguments: Sequence[str]) -> None:
        self._program, self._arguments = config.fit, list(arguments)
        # A launch directory is on the nodes; it is here, too, only when this machine is the node.
        self._directory = config.launch.directory if config.launch.kind == "local" else None
        self._answers: dict[int, int] = {}

    def largest(self, at_most: int) -> int:
        """The largest number of ranks up to ``at_most``.

        Raises:
            ConfigError: no number fits, or the training config is wrong; in the program's words.
            RuntimeError: the program fails or gives no such number.
        """
        if at_most not in self._answers:
            self._answers[at_most] = self._ask(at_most)
        return self._answers[at_most]

    def _ask(self, at_most: int) -> int:
        answer = subprocess.run(
            [sys.executable, *self._program, "--at-most", str(at_most), *self._arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self._directory,
            start_new_session=True,
        )
        name, errors = " ".join(self._program), answer.stderr.strip()
        words = error_in(errors) or errors
        if answer.returncode == EXIT_USAGE:
            raise ConfigError(words)
        if answer.returncode or not answer.stdout.strip().isdigit():
            words = words or answer.stdout.strip() or f"it ended with code {answer.returncode}"
            raise RuntimeError(f"{name} did not say how many ranks fit: {words}")
        if not 1 <= int(answer.stdout) <= at_most:
            raise RuntimeError(
                f"{name} said that {int(answer.stdout)} ranks fit, and there is room for {at_most}"
            )
        return int(answer.stdout)
