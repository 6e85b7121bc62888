"""``train.compile``: a module's forward as one graph of torch.compile, inside a training step only.

Outside of a step (validation, exports, tasks) the same module is called as it is, so their shapes cost no
compilation. The forward is compiled in place of the module: parameters keep their names, and hooks of the
module itself stay outside the graph. A graph is made for each combination of shapes: whole rows and padded
ones, windows and crops of each length.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor import exc

from cluster.process.heartbeat import heartbeat
from trainer.engine.compile_mode import Compile

BACKEND = "inductor"
GRAPHS = 64  # of one forward, student's and teacher's: lengths × padded or not × crops padded or not
_FAULTS = (
    TorchDynamoException,
    FailOnRecompileLimitHit,
    exc.InvalidCxxCompiler,
    exc.CppCompileError,
    exc.OperatorIssue,
    exc.SubgraphLoweringException,
)


class CompiledForward:
    """The forward of ``module``: compiled while that works, else as it is, from the first failure on."""

    def __init__(self, module: nn.Module, *, called: str, mode: Compile, say: Callable[[str], None]) -> None:
        """``called``: what the module is, in the sentence that ``say`` gets where it is not compiled."""
        self._module, self._plain = module, module.forward
        self.called, self._say = called, say
        self._seen: set[Any] = set()
        # A limit of this process that only grows: beyond it a call fails, since the graph must be whole.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        torch._functorch.config.force_non_lazy_backward_lowering = True  # a fault shows in the forward
        self._compiled: Callable[..., Any] | None = None
        graphs = mode == "reduce-overhead" and BACKEND == "inductor"
        try:
            self._compiled = torch.compile(
                self._plain,
                fullgraph=True,
                dynamic=False,
                backend=BACKEND,
                mode="reduce-overhead" if graphs else None,
            )
        except RuntimeError as fault:  # a Python or a system that torch.compile does not know
            self._give_up(fault)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            return self._plain(*args, **kwargs)
        shapes = torch.is_grad_enabled(), _shapes((args, kwargs))
        try:
            if shapes in self._seen:
                return self._compiled(*args, **kwargs)
            skipped = _graphs_skipped()
            with heartbeat.inside(f"compiling the {self.called}", phase=True, slow=True):
                outputs = self._compiled(*args, **kwargs)
            if _graphs_skipped() > skipped:
                self._say(
                    f"train.compile: reduce-overhead recorded no CUDA graph of a part of the {self.called}'s "
                    "forward or backward, which computes the same more slowly; TORCH_LOGS=perf_hints says why"
                )
        except _FAULTS as fault:
            self._give_up(fault)
            return self._plain(*args, **kwargs)
        self._seen.add(shapes)
        return outputs

    def _give_up(self, fault: Exception) -> None:
        self._compiled = None
        self._say(
            f"train.compile: the {self.called}'s forward is not compiled from here on, and computes the "
            f"same more slowly: {_reason(fault)}"
        )

    @property
    def graphs(self) -> int:
        """How many combinations of shapes it has compiled."""
        return len(self._seen)

    @property
    def works(self) -> bool:
        """Whether it is compiled still."""
        return self._compiled is not None

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """In the block, a call of the module computes with the compiled forward."""
        self._module.forward = self
        try:
            yield
        finally:
            del self._module.forward


def _graphs_skipped() -> int:
    """How many graphs torch could not record up to now; it says so in its own log alone."""
    return int(counters["inductor"]["cudagraph_skips"])


def usable(mode: Compile, device: torch.device, *, say: Callable[[str], None]) -> Compile:
    """``mode`` as ``device`` can have it, with a sentence where that is another."""
    if mode == "reduce-overhead" and device.type != "cuda":
        say(
            "train.compile: reduce-overhead records CUDA graphs, which a CPU does not have; "
            "it is as default here"
        )
        return "default"
    return mode


def _shapes(value: Any) -> Any:
    """What a graph is made for: shape and dtype of each tensor, whatever holds it; simple values as they
    are."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, Mapping):
        return tuple((key, _shapes(each)) for key, each in value.items())
    if isinstance(value, tuple | list):
        return tuple(_shapes(each) for each in value)
    if dataclasses.is_dataclass(value):
        return tuple(_shapes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return value if isinstance(value, str | int | float | None) else type(value)


def _reason(fault: BaseException) -> str:
    """The cause of ``fault`` in a sentence: torch puts pages of advice around it."""
    cause = getattr(fault, "inner_exception", None) or fault.__cause__ or fault
    lines = [line.strip() for line in (str(cause).strip() or str(fault).strip()).splitlines()]
    parts = [f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"]
    parts += [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")][:1]
    return ". ".join(part.rstrip(".") for part in parts)
