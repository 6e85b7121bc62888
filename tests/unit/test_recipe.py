"""A network made in parts: the same bits as whole, no more memory than a part, and a sentence where it cannot
be."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dist.teachers import Odd, Watch
from trainer.engine.recipe import Given, Recipe


class Deep(nn.Module):
    """Parameters of its own between parts, a part that is thrown away, one registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.randn(3))
        nn.ModuleList([nn.Linear(4, 4)])  # draws, and is no part
        self.layers = nn.Sequential(Odd(), nn.Sequential(nn.Linear(3, 4), nn.GELU()), nn.Linear(4, 2))
        self.alias = self.layers[1]
        self.after = nn.Parameter(torch.randn(()))


def values_of(source: Recipe[Any] | Given[Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    source.give(lambda name, value: found.__setitem__(name, value.clone()))
    return found


def whole(make: Any, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: parameter.detach().clone() for name, parameter in make().named_parameters()}


def test_the_values_are_those_of_the_network_made_whole() -> None:
    recipe = Recipe(Deep, seed=7)
    skeleton = recipe.skeleton()
    after = torch.get_rng_state()
    expected = whole(Deep, 7)
    assert after.equal(torch.get_rng_state()), "the generator is as after the network was made whole"
    assert {name: p.shape for name, p in skeleton.named_parameters()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(p.untyped_storage().nbytes() == 4 for p in skeleton.parameters()), "they have no memory"
    assert {type(p) for p in skeleton.parameters()} == {nn.Parameter}
    assert skeleton.layers[0].again.weight is skeleton.layers[0].first.weight, "tied stays tied"
    torch.rand(5)
    before = torch.get_rng_state()
    found = values_of(recipe)
    assert before.equal(torch.get_rng_state()), "the generator is as before"
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


def test_buffers_and_what_is_no_parameter_are_as_they_were_made() -> None:
    skeleton = Recipe(lambda: nn.BatchNorm1d(3), seed=0).skeleton()
    assert skeleton.running_var is not None and skeleton.running_var.tolist() == [1, 1, 1]


def test_one_part_at_a_time_is_in_memory() -> None:
    layer = 4 * 64 * 65
    with Watch() as watch:
        recipe = Recipe(lambda: nn.Sequential(*[nn.Sequential(nn.Linear(64, 64)) for _ in range(20)]), seed=1)
        skeleton = recipe.skeleton()
        recipe.give(lambda name, value: None)
    assert len(list(skeleton.parameters())) == 40
    assert watch.peak < 22 * layer / 5, "a list of 20 parts that are made before the list is, one by one"


class Late(nn.Module):
    """Sets a part's values after it was registered."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(3, 3)
        nn.init.normal_(self.part.weight)


class Copies(nn.Module):
    """Reads a part's values."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)
        self.other.weight.data.copy_(self.one.weight.data)


@pytest.mark.parametrize(("kind", "what"), [(Late, "normal_"), (Copies, "__get__")])
def test_a_part_that_is_touched_later_is_made_whole_and_said_so(
    kind: Any, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(kind, seed=3)
    skeleton = recipe.skeleton()
    said = capsys.readouterr().err
    assert said.startswith(f"the network is built by {what} on the parameters of a part that was finished: ")
    assert "each rank holds the whole network in fp32 as it starts" in said
    assert [name for name, _ in skeleton.named_parameters()] == [
        name for name, _ in kind().named_parameters()
    ]
    found, expected = values_of(recipe), whole(kind, 3)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)
    assert type(next(skeleton.parameters())) is nn.Parameter


def test_a_network_that_is_there_gives_its_values_once_and_lets_go_of_them() -> None:
    network = Odd()
    expected = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    given = Given(network)
    assert given.skeleton() is network
    assert all(parameter.untyped_storage().nbytes() == 4 for parameter in network.parameters())
    found = values_of(given)
    assert all(found[name].equal(expected[name]) for name in expected)
    assert values_of(given) == {}


def test_a_fault_while_it_is_made_leaves_no_hook_behind() -> None:
    def make() -> nn.Module:
        nn.Sequential(nn.Linear(2, 2))
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        Recipe(make, seed=0).skeleton()
    held = nn.Sequential(nn.Linear(2, 2))
    assert held[0].weight.untyped_storage().nbytes() == 16
