"""The examples of docs/api.md run as they stand there, in their order."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from tests import kept
from tests.registered import registered, tiny_network
from trainer.models import pretrained

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_example_runs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = kept.outcome(registered(tmp_path_factory), "classification", "probe")
    kept.written(tmp_path / "task_model", fitted.model)
    network = tiny_network()
    pretrained.write(str(tmp_path / "model"), network, dict(network.state_dict()), card="a toy")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    assert len(BLOCKS) >= 8
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for number, block in enumerate(BLOCKS, 1):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), namespace)


def test_every_public_function_is_on_the_page() -> None:
    text = PAGE.read_text()
    missing = [name for name in trainer.__all__ if not re.search(rf"\b{name}\b", text)]
    assert missing == ["Masked", "View", "Windows", "flank_for", "input_noise"], (
        "name what is new on the page, or here if no example needs it"
    )
