"""How a network's first values are made, one module at a time, so that no rank holds them all at once.

The values are those that its constructor draws from torch's generator on the CPU after the seed: the same
bits on any number of ranks. A rank makes the network twice. The first time tells its modules, names and
shapes; the second time, once the optimiser has cut the parameters, each value is handed on as soon as its
module is made. Both times a parameter gives its memory back when its module is registered with another one:
from then on only its shape may be read.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from trainer.core.console import say
from trainer.engine.partition import no_memory

M = TypeVar("M", bound=nn.Module)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
Take = Callable[[str, Tensor], None]


class Source(Protocol[M_co]):
    """Where a network and its first values come from."""

    def skeleton(self) -> M_co:
        """The network, whose parameters have a shape and no memory; to be called once, before ``give``."""

    def give(self, take: Take) -> None:
        """Call ``take`` with the name and the value of every parameter, fp32 on CPU or on the network's own
        device."""


class Given(Generic[M]):
    """A network that is there whole; its values are kept where they are until they are given."""

    def __init__(self, network: M) -> None:
        self._network, self._values = network, dict[str, Tensor]()

    def skeleton(self) -> M:
        for name, parameter in self._network.named_parameters():
            self._values[name] = parameter.detach()
            parameter.data = no_memory(parameter)
        return self._network

    def give(self, take: Take) -> None:
        while self._values:
            take(*self._values.popitem())


class Recipe(Generic[M]):
    """A network that ``make`` builds on the CPU with values drawn after ``seed``; it must build the same at
    every call."""

    def __init__(self, make: Callable[[], M], *, seed: int) -> None:
        self._make, self._seed = make, seed
        self._names: list[str | None] = []  # of the parameters in the order in which they are made
        self._whole: Given[M] | None = None

    def skeleton(self) -> M:
        made: list[nn.Parameter] = []
        torch.manual_seed(self._seed)
        try:
            network = _made_by_parts(self._make, lambda parameter: made.append(parameter))
        except _SpentError as fault:
            say(
                f"{fault}: so each rank holds the whole network in fp32 as it starts; a module that sets all "
                "its parameters before it is registered with another needs a part of it only"
            )
            torch.manual_seed(self._seed)
            self._whole = Given(self._make())
            return self._whole.skeleton()
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        self._names = [names.get(id(parameter)) for parameter in made]
        return network

    def give(self, take: Take) -> None:
        if self._whole:
            self._whole.give(take)
            return
        place = iter(self._names)

        def hand_on(parameter: nn.Parameter) -> None:
            name = next(place)
            if name is not None:  # of a module that did not become part of the network
                take(name, parameter.detach())

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            _made_by_parts(self._make, hand_on)
        assert next(place, self) is self, "the network was made with fewer parameters than before"


class _SpentError(Exception):
    """A parameter's values were touched after they had been handed on."""


class _Spent(nn.Parameter):
    """A parameter whose values are gone: only what needs no values may be asked."""

    _ALLOWED: ClassVar[set[Any]] = {
        getattr(getattr(torch.Tensor, name), "__get__", None)
        for name in ("shape", "dtype", "device", "requires_grad", "grad_fn", "is_leaf", "ndim", "grad")
    } | {getattr(torch.Tensor, name) for name in ("size", "numel", "dim", "is_floating_point", "__hash__")}

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in cls._ALLOWED:
            name = getattr(function, "__name__", str(function))
            raise _SpentError(f"the network is built by {name} on the parameters of a part that was finished")
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def _made_by_parts(make: Callable[[], M], take: Callable[[nn.Parameter], None]) -> M:
    """The network of ``make``; ``take`` had each of its parameters, which have no memory any more."""
    spent: list[tuple[nn.Parameter, type]] = []
    seen: set[int] = set()

    def finish(module: nn.Module) -> None:
        for parameter in module.parameters():
            if id(parameter) in seen:
                continue
            take(parameter)
            seen.add(id(parameter))
            parameter.data = no_memory(parameter)
            spent.append((parameter, type(parameter)))  # kept, so that no other gets its id
            parameter.__class__ = _Spent

    try:
        with _when_registered(finish):
            network = make()
        finish(network)
    finally:
        for parameter, kind in spent:
            parameter.__class__ = kind
    return network


@contextmanager
def _when_registered(finish: Callable[[nn.Module], None]) -> Iterator[None]:
    """Call ``finish`` with each module that becomes part of another one, in this thread."""
    thread = threading.get_ident()

    def hook(parent: nn.Module, name: str, module: Any) -> None:
        if threading.get_ident() == thread and isinstance(module, nn.Module):
            finish(module)

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()
