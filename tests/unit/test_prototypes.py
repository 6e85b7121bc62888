"""The teacher's targets against naive loops over every row of every rank: centred, balanced, and only those
that count.

Ranks are played one after the other here: each has its own TeacherRows, and what they would gather is stacked
by hand.
"""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.core.collectives import Group
from trainer.losses.dino import Dino, DinoConfig
from trainer.losses.distillation import centred_probabilities
from trainer.losses.prototype_head import PrototypeConfig, PrototypeHead, PrototypeOutput
from trainer.losses.teacher_targets import TeacherRows, TeacherTargets, teacher_targets
from trainer.models.chordmixer import ChordMixerConfig
from trainer.models.config import build_backbone
from trainer.models.network import Network

K, C = 7, 5
PLAIN = PrototypeConfig(prototypes=K, bottleneck=C, teacher_temperature=0.1, balance="centring")


@dataclass(frozen=True)
class Everything:
    """What the teacher says on every rank: [W, micro-batches, directions, R, P, C] against the same
    prototypes."""

    bottleneck: Tensor
    prototypes_KC: Tensor
    valid: Tensor | None  # bool, as bottleneck without P and C

    @property
    def cosines(self) -> Tensor:
        return self.bottleneck @ self.prototypes_KC.T


def everything(seed: int, *shape: int, masked: bool = False) -> Everything:
    g = torch.Generator().manual_seed(seed)
    bottleneck = F.normalize(torch.randn(*shape, C, generator=g), dim=-1)
    prototypes_KC = F.normalize(torch.randn(K, C, generator=g), dim=-1)
    return Everything(
        bottleneck, prototypes_KC, torch.rand(*shape[:-1], generator=g) < 0.6 if masked else None
    )


def targets(
    given: Everything, config: PrototypeConfig, centre_PX: Tensor | None = None, *, progress: float = 1.0
) -> list[TeacherTargets]:
    """Of every rank, after what they gathered."""
    split = config.balance == "sinkhorn"
    ranks = range(len(given.bottleneck))

    def outputs_of(rank: int) -> list[list[PrototypeOutput]]:
        if split or config.centre_bottleneck:
            return [
                [PrototypeOutput(None, b, given.prototypes_KC) for b in by_direction]
                for by_direction in given.bottleneck[rank]
            ]
        return [[PrototypeOutput(c) for c in by_direction] for by_direction in given.cosines[rank]]

    valid = [
        None if given.valid is None else [list(by_direction) for by_direction in given.valid[rank]]
        for rank in ranks
    ]
    found = [TeacherRows.of(outputs_of(rank), valid[rank]) for rank in ranks]
    payloads = [one.payload(whole=split) for one in found]
    assert (
        len({str({name: (part.shape, part.dtype) for name, part in payload.items()}) for payload in payloads})
        == 1
    )
    gathered = {name: torch.stack([payload[name] for payload in payloads]) for name in payloads[0]}
    made = []
    for rank, rows in enumerate(found):
        group = Group(rank, len(ranks))
        made.append(
            teacher_targets(config, rows, gathered, group=group, before_PX=centre_PX, progress=progress)
        )
        counted = given.bottleneck[..., 0, 0].numel() if given.valid is None else int(given.valid.sum())
        assert made[-1].total == max(1, counted)
    return made


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(1, 3)
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), SHAPES, st.booleans())
def test_the_centre_is_the_mean_at_each_position_of_all_rows_that_count(
    seed: int, shape: tuple[int, ...], masked: bool
) -> None:
    given_ = everything(seed, *shape, masked=masked)
    positions = shape[-1]
    total, count = torch.zeros(positions, K, dtype=torch.float64), 0
    for place in itertools.product(*map(range, shape[:-1])):
        if given_.valid is None or given_.valid[place]:
            total += given_.cosines[place].double()
            count += 1
    for one in targets(given_, PLAIN):
        if not count:
            assert one.counted == 0, "a batch without any row has no centre to move to"
            continue
        assert one.centre_PX is not None and one.centre_PX.shape == (positions, K)
        torch.testing.assert_close(one.centre_PX.double(), total / count, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), SHAPES)
def test_probabilities_are_centred_with_the_centre_before_this_batch_in_the_order_of_the_micro_batches(
    seed: int, shape: tuple[int, ...]
) -> None:
    given_ = everything(seed, *shape)
    before_PK = torch.randn(shape[-1], K, generator=torch.Generator().manual_seed(seed)) / 4
    for centre_PK in (before_PK, None):
        for rank, one in enumerate(targets(given_, PLAIN, centre_PK)):
            for m, d in itertools.product(range(shape[1]), range(shape[2])):
                found_RPK = one.probabilities(m, d)
                for r, p in itertools.product(range(shape[3]), range(shape[4])):
                    shifted_K = given_.cosines[rank, m, d, r, p].double()
                    if centre_PK is not None:
                        shifted_K = shifted_K - centre_PK[p]
                    exact_K = (shifted_K / 0.1).exp() / (shifted_K / 0.1).exp().sum()
                    torch.testing.assert_close(found_RPK[r, p].double(), exact_K, rtol=1e-4, atol=1e-6)


def test_without_balance_nothing_is_centred() -> None:
    given_ = everything(0, 2, 1, 1, 3, 2)
    for rank, one in enumerate(targets(given_, PLAIN.model_copy(update={"balance": "none"}))):
        assert one.centre_PX is None
        assert torch.equal(
            one.probabilities(0, 0), centred_probabilities(given_.cosines[rank, 0, 0], None, 0.1)
        )


def naive_sinkhorn(cosines_NK: Tensor, valid_N: Tensor, iterations: int) -> Tensor:
    q_NK = (cosines_NK.double() / 0.1).exp()
    for _ in range(iterations):
        if valid_N.any():
            q_NK = q_NK / (valid_N.double()[:, None] * q_NK).sum(0)
        q_NK = q_NK / q_NK.sum(1, keepdim=True)
    return q_NK


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), SHAPES, st.booleans(), st.integers(1, 4))
def test_sinkhorn_balances_each_position_over_all_ranks_micro_batches_and_directions(
    seed: int, shape: tuple[int, ...], masked: bool, iterations: int
) -> None:
    given_ = everything(seed, *shape, masked=masked)
    config = PLAIN.model_copy(update={"balance": "sinkhorn", "sinkhorn_iterations": iterations})
    valid_N = torch.ones(shape[:-1]).bool() if given_.valid is None else given_.valid
    exact = torch.stack(
        [
            naive_sinkhorn(given_.cosines[..., p, :].reshape(-1, K), valid_N.reshape(-1), iterations)
            for p in range(shape[-1])
        ],
        1,
    ).view(given_.cosines.shape)
    for rank, one in enumerate(targets(given_, config)):
        assert one.centre_PX is None, "a balanced batch needs no centre"
        for m, d in itertools.product(range(shape[1]), range(shape[2])):
            found_RPK = one.probabilities(m, d)
            assert found_RPK.dtype == torch.float32
            torch.testing.assert_close(found_RPK.double(), exact[rank, m, d], rtol=1e-4, atol=1e-6)


def test_one_balance_for_all_positions_would_be_another() -> None:
    """Each position prefers a prototype of its own, whatever the sample is: over all positions that looks
    balanced."""
    axis = torch.eye(3, C)
    bottleneck = axis.expand(1, 1, 1, 6, 3, C) + 0.05 * torch.randn(1, 1, 1, 6, 3, C)
    given_ = Everything(F.normalize(bottleneck, dim=-1), torch.cat([axis, torch.eye(C)[3:], -axis[:2]]), None)
    sharp = PLAIN.model_copy(update={"teacher_temperature": 0.04})
    plain_RPK = targets(given_, sharp)[0].probabilities(0, 0)
    assert (plain_RPK.mean((0, 1))[:3] > 0.3).all() and (plain_RPK.mean(0).amax(-1) > 0.9).all()
    centred = targets(given_, sharp, targets(given_, sharp)[0].centre_PX)
    balanced = targets(given_, sharp.model_copy(update={"balance": "sinkhorn", "sinkhorn_iterations": 20}))
    for one in (centred[0], balanced[0]):
        assert (one.probabilities(0, 0).mean(0).amax(-1) < 0.5).all(), "the sample decides, not the position"


@pytest.mark.parametrize("balance", ["centring", "sinkhorn"])
def test_letters_that_do_not_count_move_nobody(balance: str) -> None:
    config = PrototypeConfig(prototypes=K, bottleneck=C, balance=balance)
    given_ = everything(3, 2, 2, 2, 4, 1, masked=True)
    assert given_.valid is not None
    other = torch.where(given_.valid[..., None, None], given_.bottleneck, -given_.bottleneck)
    before, after = (
        targets(Everything(b, given_.prototypes_KC, given_.valid), config) for b in (given_.bottleneck, other)
    )
    for rank, (one, two) in enumerate(zip(before, after, strict=True)):
        if balance == "centring":
            assert one.centre_PX is not None and two.centre_PX is not None
            assert torch.equal(one.centre_PX, two.centre_PX)
        for m, d in itertools.product(range(2), range(2)):
            valid_R = given_.valid[rank, m, d]
            first, second = one.probabilities(m, d), two.probabilities(m, d)
            assert torch.equal(first[valid_R], second[valid_R])
            assert not valid_R.all() or torch.equal(first, second)
            assert valid_R.all() or not torch.equal(first[~valid_R], second[~valid_R])


def test_the_moving_centre_follows_that_of_each_batch() -> None:
    term = Dino(DinoConfig(prototypes=K, centre_momentum=0.75))
    given_ = everything(0, 1, 1, 2, 6, 3)
    state = torch.zeros(3, K)
    for step in (1, 2, 3):
        (context,) = targets(given_, PLAIN, state)
        state = term.next_state(state, context)
        torch.testing.assert_close(state, context.centre_PX * (1 - 0.75**step))
    nothing = everything(0, 1, 1, 1, 2, 3)
    none_counts = Everything(nothing.bottleneck, nothing.prototypes_KC, torch.zeros(1, 1, 1, 2).bool())
    (context,) = targets(none_counts, PLAIN, state)
    assert torch.equal(term.next_state(state, context), state), "no row counts: the centre stays"


CENTRED = {"centre_bottleneck": True, "centre_momentum": 0.75}


@pytest.mark.parametrize("balance", ["centring", "sinkhorn"])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 30), SHAPES, st.booleans())
def test_a_mean_is_taken_off_the_bottleneck_before_its_norm(
    balance: str, seed: int, shape: tuple[int, ...], masked: bool
) -> None:
    """As if the teacher had said the unit vectors of what is left; the mean of what it did say comes next."""
    g = torch.Generator().manual_seed(seed)
    given_ = everything(seed, *shape, masked=masked)
    raw = replace(given_, bottleneck=torch.randn(*shape, C, generator=g) + 3)
    mean_PC = 3 + torch.randn(shape[-1], C, generator=g) / 4
    left = replace(raw, bottleneck=F.normalize(raw.bottleneck - mean_PC, dim=-1))
    config = PLAIN.model_copy(update={"balance": balance, **CENTRED})
    expected = targets(left, config.model_copy(update={"centre_bottleneck": False}), None)
    counts = torch.ones(shape[:-1]).bool() if raw.valid is None else raw.valid
    for one, other in zip(targets(raw, config, mean_PC), expected, strict=True):
        for m, d in itertools.product(range(shape[1]), range(shape[2])):
            torch.testing.assert_close(one.probabilities(m, d), other.probabilities(m, d))
        if counts.any():
            torch.testing.assert_close(one.centre_PX, raw.bottleneck[counts].mean(0))
        student = PrototypeOutput(None, raw.bottleneck[0, 0, 0], raw.prototypes_KC)
        torch.testing.assert_close(one.cosines(student), left.cosines[0, 0, 0])
        if balance == "centring":
            assert one.rows.payload(whole=False)["sum"].shape == (shape[-1], C), "a sum travels, no rows"


def test_the_mean_of_the_bottleneck_is_what_is_carried() -> None:
    sizes = ChordMixerConfig(num_layers=1, num_groups=2, group_channels=2, num_summary=3)
    network = Network(build_backbone(sizes), heads={})
    device = torch.device("cpu")
    for settings_, shape in (
        ({}, (3, K)),
        ({"reads": "pooled"}, (1, K)),
        ({"centre_bottleneck": True}, (3, C)),
        ({"centre_bottleneck": True, "balance": "sinkhorn", "reads": "pooled"}, (1, C)),
        ({"balance": "sinkhorn"}, None),
    ):
        state = Dino(DinoConfig(prototypes=K, bottleneck=C, **settings_)).first_state(network, device)
        assert (None if state is None else tuple(state.shape)) == shape


def test_the_temperature_goes_from_start_to_end_over_its_share_of_the_schedule() -> None:
    config = PrototypeConfig(
        teacher_temperature=0.04, teacher_temperature_start=0.08, teacher_temperature_warmup=0.5
    )
    found = [config.temperature_at(progress) for progress in (0.0, 0.25, 0.5, 0.9, 1.0)]
    assert found == pytest.approx([0.08, 0.06, 0.04, 0.04, 0.04])
    assert PLAIN.temperature_at(0.0) == PLAIN.temperature_at(1.0) == 0.1
    (one,) = targets(everything(0, 1, 1, 1, 2, 1), config, progress=0.25)
    assert one.temperature == pytest.approx(0.06)


@pytest.mark.parametrize("raw", [False, True])
def test_the_predictor_is_the_students_alone(raw: bool) -> None:
    """In training it changes what the head says; in eval mode, which a teacher is in, it is not there."""
    torch.manual_seed(0)
    head = PrototypeHead(6, mlp_size=8, bottleneck=C, prototypes=K, raw=raw, predictor=True)
    x = torch.randn(4, 6)
    plain = PrototypeHead(6, mlp_size=8, bottleneck=C, prototypes=K, raw=raw)
    plain.load_state_dict(head.state_dict(), strict=False)
    for found, expected in zip(head.eval().outputs(x), plain.outputs(x), strict=True):
        assert found is expected is None or torch.equal(found, expected)
    trained = head.train().outputs(x)
    assert (trained.bottleneck if raw else trained.cosines) is not None
    assert not torch.equal(trained[1 if raw else 0], plain.outputs(x)[1 if raw else 0])
    assert Dino(DinoConfig(predictor=True)).student_only(head) == [head.predictor]
    assert Dino(DinoConfig()).student_only(plain) == []


def test_what_travels_is_small_and_of_one_shape() -> None:
    given_ = everything(0, 1, 2, 2, 5, 3)
    (centring,) = targets(given_, PLAIN)
    assert {name: tuple(part.shape) for name, part in centring.rows.payload(whole=False).items()} == {
        "sum": (3, K),
        "valid": (),
    }
    (balanced,) = targets(given_, PLAIN.model_copy(update={"balance": "sinkhorn"}))
    assert {name: tuple(part.shape) for name, part in balanced.rows.payload(whole=True).items()} == {
        "bottleneck": (20, 3, C),
        "valid": (20,),
    }
