"""What a layer begins with, from its law alone and from real weights."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from dctps import DpSConv2d, DpSLinear, merge_, sparsify_
from dctps.initial import ZEROS, Law, default_law, kaiming_normal, law_of, set_laws
from dctps.models import build_model
from tests.support import oracles


def meta(build, *arguments, **options):
    with torch.device("meta"):
        return build(*arguments, **options)


@pytest.mark.parametrize("law", [Law("normal", 0.3), Law("uniform", 0.3), ZEROS])
def test_dense_and_counter_draws_follow_the_law(law):
    torch.manual_seed(0)
    dense = torch.full((200, 200), 7.0)
    law.fill_(dense)
    drawn = law.draw(3, "layer", "values", torch.arange(40_000))
    for entries in (dense.double(), drawn):
        # The mean of 40,000 draws is off by std / 200, their standard deviation by at most std / 280.
        assert abs(entries.mean()) <= 5 * law.std / 200
        assert abs(entries.std() - law.std) <= 5 * law.std / 280
        assert law.norm(entries.numel()) == pytest.approx(entries.norm().item(), rel=0.02)
    largest = {"normal": 4 * law.std, "uniform": math.sqrt(3) * law.std, "zeros": 0}[law.kind]
    assert drawn.abs().max() == pytest.approx(largest, rel=0.2)


def test_each_entry_comes_from_the_draw_of_its_own_position():
    positions = torch.tensor([5, 0, 10**12])
    drawn = Law("normal", 2.0).draw(3, "a.b", "values", positions)
    expected = [2.0 * oracles.normal("3/a.b/values", i) for i in positions.tolist()]
    assert drawn.tolist() == pytest.approx(expected, rel=1e-6)


def test_torchs_own_layers_follow_the_default_law():
    torch.manual_seed(0)
    for layer in (nn.Linear(300, 400), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 960, 3, groups=32)):
        law = law_of(layer, "weight")
        assert law == default_law(layer.weight[0].numel()) == law_of(layer, "bias")
        assert law.norm(layer.weight.numel()) == pytest.approx(layer.weight.norm().item(), rel=0.02)
        assert layer.bias.abs().max().item() == pytest.approx(math.sqrt(3) * law.std, rel=0.1)


def test_kaiming_normal_is_torchs():
    torch.manual_seed(0)
    weight = nn.init.kaiming_normal_(torch.empty(64, 32, 3, 3), mode="fan_out")
    assert kaiming_normal(64 * 9).std == pytest.approx(weight.std().item(), rel=0.02)


@pytest.mark.parametrize(("kind", "std"), [("normal", 0.0), ("zeros", 1.0), ("uniform", -1.0), ("t", 1.0)])
def test_laws_that_are_none_are_refused(kind, std):
    with pytest.raises(ValueError, match="law is one of|std must be"):
        Law(kind, std)


def own_network():
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 24), nn.Linear(24, 10))
    set_laws(model[0], weight=Law("normal", 0.02))
    set_laws(model[2], weight=ZEROS, bias=Law("uniform", 0.1))
    return model


@pytest.mark.parametrize("offset", ["dct", "sdct", "hadamard"])
def test_match_agrees_between_meta_and_real_builds(offset):
    torch.manual_seed(0)
    real = sparsify_(own_network(), 0.01, offset=offset, alpha="match")
    bare = sparsify_(meta(own_network), 0.01, offset=offset, alpha="match")
    for i in (0, 2, 3):
        size = math.prod(real[i].offset.shape)
        # The norm of `size` draws is off by a share of 1 / sqrt(2 size) at most.
        assert bare[i].alpha.item() == pytest.approx(real[i].alpha.item(), rel=5 / math.sqrt(2 * size))
    assert bare[2].alpha.item() == real[2].alpha.item() == 0
    norm = bare[0].to_dense().norm().item()
    assert norm == pytest.approx(0.02 * math.sqrt(32 * 16 * 9), rel=1e-5)


def test_values_and_biases_of_a_meta_build_follow_the_laws():
    model = sparsify_(meta(own_network), 0.5, offset="zero", allocation="uniform", seed=4)
    conv, zeros, default = model[0], model[2], model[3]
    some = range(0, conv.nnz, 500)
    expected = [0.02 * oracles.normal("4/0/values", int(conv.support[i])) for i in some]
    assert [conv.values[i].item() for i in some] == pytest.approx(expected, rel=1e-5)
    assert not zeros.values.any()
    assert zeros.bias.abs().max() <= math.sqrt(3) * 0.1
    assert zeros.bias.std() > 0.05
    assert default.values.abs().max() <= 24**-0.5
    before = copy.deepcopy(model.state_dict())
    for layer in (conv, zeros, default):
        layer.reset_parameters()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_laws_reach_what_stays_dense_and_come_back_from_merging():
    model = sparsify_(meta(own_network), 0.5, filter_fn=lambda module, name: name not in ("0", "2"))
    assert 0.018 < model[0].weight.std() < 0.022
    assert not model[2].weight.any()
    merged = merge_(sparsify_(own_network(), 0.5, offset="zero"))
    assert merged[0].weight_law == Law("normal", 0.02)
    assert pickle.loads(pickle.dumps(merged))[2].weight_law == ZEROS


def test_a_layer_of_its_own_has_torchs_law():
    assert DpSLinear(12, 5, nnz=3).weight_law == default_law(12)
    assert DpSConv2d(4, 5, 3, nnz=3).bias_law == default_law(36)


def test_fixups_first_stage_by_hand():
    """std = sqrt(2 / (9 * 16)) / sqrt(54) = 0.0160375, times sqrt(16 * 144) = 48, over ||D|| = 4."""
    by_hand = 0.0160375 * 48 / 4
    assert by_hand == pytest.approx(0.1925, abs=5e-5)
    for build in (build_model, lambda *arguments: meta(build_model, *arguments)):
        model = sparsify_(build("fixup-resnet110", 10, 3), 1e-3, alpha="match")
        for block in model.stages[0]:
            # On real weights 2304 draws; the norm is off by a share of 1 / sqrt(4608).
            assert block.conv1.alpha.item() == pytest.approx(by_hand, rel=5 / math.sqrt(4608))
            assert block.conv2.alpha.item() == 0
        assert model.classifier.alpha.item() == 0
        assert not model.classifier.bias.any()
        beside = {n: p for n, p in model.named_parameters() if "bias" in n or "scale" in n}
        assert len(beside) == 5 * 54 + 3
        assert all(torch.equal(p, torch.full_like(p, float("scale" in n))) for n, p in beside.items())
    assert model.stages[0][0].conv1.alpha.item() == pytest.approx(0.1925, abs=5e-5)


def test_layers_that_begin_with_zero_learn():
    """The gradient reaches the classifier's alpha, then its values and conv2's alpha, then everything."""
    model = sparsify_(meta(build_model, "fixup-resnet20", 10, 3), 0.01, offset="sdct", alpha="match")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 3, 16, 16, generator=generator), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    block = model.stages[1][1]
    watched = {
        "classifier.alpha": model.classifier.alpha,
        "classifier.values": model.classifier.values,
        "conv2.alpha": block.conv2.alpha,
        "conv2.values": block.conv2.values,
        "conv1.alpha": block.conv1.alpha,
        "conv1.values": block.conv1.values,
    }
    seen, losses = [], []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        seen.append({name for name, p in watched.items() if p.grad.abs().max() > 0})
        losses.append(loss.item())
        optimizer.step()
    assert seen[0] == {"classifier.alpha", "classifier.values"}
    assert seen[1] == {*seen[0], "conv2.alpha", "conv2.values"}
    assert seen[2] == set(watched)
    assert losses[0] == pytest.approx(math.log(10), abs=1e-6)
    assert losses[-1] < losses[0]
