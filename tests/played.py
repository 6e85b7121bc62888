"""A pretraining of a study that is played: what runs on Ray, and what the run of that name leaves behind."""

import os
from pathlib import Path
from typing import Any

from cluster.tasks.programs import Program, ProgramEnd


def play(program: Program, flag: Any) -> ProgramEnd:
    """As run_pretraining: it notes its start; a file beside run.dir says how it ends, with code and error."""
    (run_dir,) = [word.partition("=")[2] for word in program.arguments if word.startswith("run.dir=")]
    place = Path(str(program.directory), run_dir)
    with open(Path(str(program.directory), "starts.txt"), "a") as log:
        log.write(place.name + "\n")
    befalls = Path(f"{place}.befalls")
    if not befalls.exists():
        return ProgramEnd(0, 0.1, False, "", "here")
    code, _, error = befalls.read_text().partition(" ")
    os.unlink(befalls)
    return ProgramEnd(int(code), 0.1, False, error, "here")
