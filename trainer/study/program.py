"""What runs on a node for a pretraining. It imports nothing of the training, which its own process does."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.tasks.programs import Program, ProgramEnd, run_program

MAIN = "trainer/main.py"
_ROOT = Path(__file__).resolve().parents[2]


def run_pretraining(program: Program, flag: Any) -> ProgramEnd:
    """How the training command ended, on the node where this runs, with the code that lies there."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = tuple(str(_ROOT / word) if word == MAIN else word for word in program.arguments)
    environment = {**program.environment, "PYTHONPATH": path}
    return run_program(replace(program, arguments=arguments, environment=environment), flag)
