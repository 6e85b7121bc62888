"""Who runs which code: what MLflow shows as user and source of a run."""

import functools
import getpass
import subprocess
from pathlib import Path

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's UI opens in Model training
NOTE = "mlflow.note.content"  # a description, in markdown
UNKNOWN = "unknown"


def source_tags(command: str) -> dict[str, str]:
    """The tags of a run that ``command`` began, such as trainer/main.py: user, source, commit, and whether
    the tree differs from it."""
    commit, dirty = git_commit(), git_dirty()
    tags = {
        "mlflow.user": user(),
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "git.commit": commit,
        "git.dirty": dirty,
    }
    return tags if commit == UNKNOWN else tags | {"mlflow.source.git.commit": commit}


def user() -> str:
    """The user's name; "unknown" where the machine has no name for the user, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return UNKNOWN


def git_commit() -> str:
    """The commit of this code; "unknown" outside a repository."""
    return _git("rev-parse", "HEAD") or UNKNOWN


def git_dirty() -> str:
    """ "yes" if files that git knows differ from the commit, "no", or "unknown" outside a repository."""
    found = _git("status", "--porcelain", "--untracked-files=no")
    return UNKNOWN if found is None else "yes" if found else "no"


@functools.cache
def _git(*words: str) -> str | None:
    """What git prints about the folder of this code; None if it fails or is not there."""
    command = ["git", "--no-optional-locks", *words]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # an image without git
        return None
    return None if done.returncode else done.stdout.strip()
