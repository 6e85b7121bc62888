"""Pretraining of DNA encoders, and the parts of it for use from Python (docs/api.md).

``from trainer import load_model``: each name is imported from its room when it is first used, so that the
commands, and who needs one part, load no other.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "trainer.api": ("embed_sequences", "load_model", "load_task_model", "score_variants"),
    "trainer.data.windows": ("Windows", "make_windows", "to_strings"),
    "trainer.engine.ema": ("ShardedEMA",),
    "trainer.losses.functions": ("info_nce", "koleo", "sinkhorn", "symmetric_info_nce"),
    "trainer.views.edits": ("VIEWS", "Edit", "flank_for"),
    "trainer.views.masking": ("Masked", "input_noise", "mask"),
    "trainer.views.view": ("View", "make_view"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_ROOM_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
