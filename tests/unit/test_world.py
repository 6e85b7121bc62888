"""The launcher's environment says which rank this process is."""

import pytest

from cluster.process import host, world


def test_world_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world.world_from_env() == world.World(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert world.world_from_env() == world.World(5, 8, 1)
    assert not world.world_from_env().is_main
    assert host.threads_per_process(10_000) == 1
