"""First values by each output's own number of weights, against a loop over rows."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import oracles
from torch import Tensor, nn

from dctps import DpSConv2d, DpSLinear, load_pretrained_, merge_, save_pretrained, shuffle_, sparsify_
from dctps.initial import ZEROS, FanInLaw, Law, law_by, set_laws
from dctps.models import build_model
from dctps.networks.conversion import convert

BUILT = {
    "linear": lambda m, n, groups: nn.Linear(n, m),
    "conv1d": lambda m, n, groups: nn.Conv1d(n * groups, m * groups, 3, groups=groups),
    "conv2d": lambda m, n, groups: nn.Conv2d(n * groups, m * groups, (3, 2), groups=groups),
}


def expected(dense: nn.Module, mask: Tensor, name: str, seed: int, gain: float) -> Tensor:
    """sqrt(gain / f) times the draw of each position, f counted in its own row of the mask."""
    positions = mask.flatten().nonzero().flatten().tolist()
    inputs = mask[0].numel()
    found = []
    for position in positions:
        f = int(mask[position // inputs].sum())
        found.append(math.sqrt(gain / f) * oracles.normal(f"{seed}/{name}/values", position))
    return torch.tensor(found, dtype=torch.float64)


@given(
    kind=st.sampled_from(sorted(BUILT)),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 3)),
    share=st.floats(0, 1),
    is_meta=st.booleans(),
    seed=st.integers(0, 5),
)
def test_each_value_is_scaled_by_its_own_rows_count(
    kind: str, shape: tuple[int, int, int], share: float, is_meta: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    with torch.device("meta" if is_meta else "cpu"):
        dense = BUILT[kind](*shape).double()
    # Rows of very different counts, some of them empty.
    rows = torch.rand(dense.weight.shape[0]).pow(3) * (torch.rand(dense.weight.shape[0]) < 0.7)
    mask = torch.rand(dense.weight.shape) < share * rows.view(-1, *[1] * (dense.weight.dim() - 1))
    layer = convert(dense, offset="zero", support=mask, init="fan-in", name="a.b", seed=seed)
    assert torch.equal(layer.to_dense() != 0, mask)
    assert torch.allclose(layer.values.detach(), expected(dense, mask, "a.b", seed, 2.0), rtol=1e-6)
    if not is_meta:
        assert torch.equal(layer.bias, dense.bias)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_variance_of_each_row_is_2_over_its_count(groups: int) -> None:
    """Rows of 1 to 512 weights, all alike in f times the mean square: 2 within 5 standard errors."""
    torch.manual_seed(0)
    dense = nn.Conv2d(64 * groups, 1024, 3, groups=groups)
    counts = torch.tensor([1, 8, 64, 512]).repeat_interleave(256)
    ranks = torch.rand(1024, 64 * 9).argsort(1).argsort(1)
    mask = (ranks < counts[:, None]).view_as(dense.weight)
    layer = convert(dense, offset="zero", support=mask, init="fan-in")
    rows = layer.to_dense().detach().flatten(1).double()
    for count in (1, 8, 64, 512):
        own = rows[counts == count]
        drawn = own[own != 0] * math.sqrt(count / 2)
        assert len(drawn) == 256 * count
        error = math.sqrt(2 / len(drawn))  # of a mean of squares of N(0, 1)
        assert abs(float(drawn.square().mean()) - 1) <= 5 * error
        assert abs(float(drawn.mean())) <= 5 / math.sqrt(len(drawn))


def test_a_law_of_the_networks_own_keeps_its_gain_and_zeros_stay() -> None:
    first, last = nn.Linear(40, 30), nn.Linear(30, 20)
    set_laws(first, weight=Law("uniform", 0.1))
    set_laws(last, weight=ZEROS)
    mask = torch.rand(30, 40) < 0.2
    model = sparsify_(
        nn.Sequential(first, last),
        offset="zero",
        criterion={"0": mask, "1": torch.ones(20, 30, dtype=torch.bool)},
        init="fan-in",
    )
    found = expected(first, mask, "0", 0, 40 * 0.1**2)
    assert torch.allclose(model[0].values.detach().double(), found, rtol=1e-5)
    assert not model[1].values.any()
    assert law_by("fan-in", ZEROS, 3) == ZEROS


@pytest.mark.parametrize("criterion", ["random", "magnitude", "snip", "grasp", "synflow", "force"])
def test_criteria_look_at_the_dense_values_and_the_chosen_are_drawn_anew(criterion: str) -> None:
    def build(**options: str) -> nn.Module:
        torch.manual_seed(0)
        images = torch.randn(8, 3, 32, 32), torch.arange(8)
        return sparsify_(
            build_model("lenet5", 10, 3), 0.1, offset="zero", criterion=criterion, batches=[images], **options
        )

    dense, anew, again = build(), build(init="fan-in"), build(init="fan-in")
    for (name, a), b, c in zip(dense.named_modules(), anew.modules(), again.modules(), strict=True):
        if isinstance(a, DpSLinear | DpSConv2d) and a.nnz:
            assert torch.equal(a.support, b.support) and torch.equal(b.values, c.values)
            assert not torch.equal(a.values, b.values)
            assert isinstance(b.weight_law, FanInLaw)
            own = b.weight_law.draw(0, name, "values", b.support)
            assert torch.equal(b.values.detach(), own.float())


def test_it_is_made_again_moved_and_kept_in_files(tmp_path) -> None:
    build = lambda: nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))  # noqa: E731
    model = sparsify_(build(), 0.1, offset="zero", init="fan-in", seed=3)
    before = model[0].values.detach().clone()
    with torch.no_grad():
        model[0].values.zero_()
    model[0].reset_parameters()
    assert torch.equal(model[0].values, before)
    save_pretrained(model, tmp_path)
    assert torch.equal(load_pretrained_(build(), tmp_path)[0].values, before)
    shuffled = shuffle_(copy.deepcopy(model), seed=1)
    mask = shuffled[0].to_dense() != 0
    assert not torch.equal(shuffled[0].support, model[0].support)
    found = expected(model[0], mask, "0", 3, 2.0)
    assert torch.allclose(shuffled[0].values.detach().double(), found, rtol=1e-5)
    assert merge_(model)[0].weight_law.norm(600) == pytest.approx(math.sqrt(2 * 600 / 30))


def test_it_is_refused_where_values_start_at_0() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(
        ValueError, match="layer '0': init 'fan-in' is of values under the offset 'zero'.*'dct'"
    ):
        sparsify_(model, 0.5, init="fan-in")
    with pytest.raises(ValueError, match='init must be "dense" or "fan-in", got \'he\''):
        sparsify_(model, 0.5, offset="zero", init="he")  # type: ignore[arg-type]
    assert type(model[0]) is nn.Linear


def test_a_trained_network_is_not_lost_without_a_word() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight += (
            3 * torch.ones(64, 1) @ torch.randn(1, 64)
        )  # one large singular value, as training makes
    options = {"offset": "zero", "criterion": "magnitude"}
    sparsify_(nn.Sequential(copy.deepcopy(layer)), 0.5, **options)
    with pytest.warns(UserWarning, match="seems to be trained"):
        sparsify_(nn.Sequential(layer), 0.5, init="fan-in", **options)
