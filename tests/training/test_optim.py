from typing import ClassVar

import pytest
import torch
from torch import nn

import dctps
from dctps.models import build_model
from dctps.training import build_optimizer, build_schedule, parameter_groups


def network():
    return nn.Sequential(
        dctps.DpSConv2d(3, 4, 3, density=0.5),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def names_with_decay(model, **options):
    decay = {
        id(p): group["weight_decay"]
        for group in parameter_groups(model, 0.1, **options)
        for p in group["params"]
    }
    names = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert len(decay) == len(names)
    assert set(names.values()) <= {0.0, 0.1}
    return {name for name, value in names.items() if value == 0.1}


EVERYTHING = {"0.values", "0.alpha", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decay_norm_bias": True}, EVERYTHING),
        ({"decay_alpha": False, "decay_norm_bias": True}, EVERYTHING - {"0.alpha"}),
        ({}, {"0.values", "0.alpha", "3.weight"}),
        ({"decay_alpha": False}, {"0.values", "3.weight"}),
    ],
)
def test_what_weight_decay_reaches(options, expected):
    assert names_with_decay(network(), **options) == expected


def test_an_optimizer_of_torch_decays_the_values_and_no_norm():
    """Along gradients of zero AdamW multiplies what decays by 1 - lr * weight_decay."""
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        before["0.values"].normal_()
        model[0].values.copy_(before["0.values"])
    optimizer = torch.optim.AdamW(dctps.parameter_groups(model, lr=0.5, weight_decay=0.1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        kept = 1 - 0.5 * 0.1 if name in {"0.values", "0.alpha", "3.weight"} else 1
        torch.testing.assert_close(p.detach(), before[name] * kept, rtol=1e-6, atol=0)


def test_matrices_by_muon_and_the_rest_by_adamw():
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        pytest.skip("this torch has no Muon")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model = dctps.sparsify_(model, 0.5, filter_fn=lambda module, name: name == "3")
    with pytest.raises(ValueError, match="2D"):
        muon(model.parameters(), lr=0.1)  # what a newcomer tries
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = dctps.parameter_groups(model, lr=0.1, weight_decay=0.0, leave_out=matrices)
    optimizers = muon(matrices, lr=0.1), torch.optim.AdamW(rest)
    held = [p for each in optimizers for group in each.param_groups for p in group["params"]]
    assert len(held) == len(list(model.parameters())) and {*held} == {*model.parameters()}
    x, y = torch.arange(7), torch.arange(7) % 3
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_frozen_parameters_are_left_out_and_shared_ones_taken_once():
    model = network()
    model[0].alpha.requires_grad_(False)
    model.append(model[3])
    groups = parameter_groups(model, 0.1, decay_norm_bias=False)
    taken = [id(p) for group in groups for p in group["params"]]
    assert len(taken) == len(set(taken)) == len(EVERYTHING) - 1
    assert id(model[0].alpha) not in taken


def test_a_model_without_trainable_parameters_is_an_error():
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.ReLU(), 0.1)


class Scaled(nn.Module):
    lr_scales: ClassVar = {"scale": 0.1, "layer.bias": 0.1}

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.layer = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda model: dctps.sparsify_(nn.Sequential(model), 0.5)])
def test_what_lr_scales_names_learns_at_its_share_of_the_rate(wrap):
    model = wrap(Scaled())
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.5, decay_norm_bias=False), lr=0.3)
    names = {p: name.removeprefix("0.") for name, p in model.named_parameters()}
    rates = {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(rates) == len(names)
    slow = {name for name, (rate, _) in rates.items() if rate == pytest.approx(0.03)}
    assert slow == {"scale", "layer.bias"}
    assert all(rates[name] == (0.3, 0.5) for name in rates if name.endswith(("values", "weight")))
    assert rates["scale"][1] == rates["other.bias"][1] == 0
    assert optimizer.param_groups[0]["lr"] == 0.3  # the first group's rate is the one that is reported
    for schedule in ("constant", "multistep", "cosine", "onecycle"):
        steps = build_schedule(schedule, optimizer, total_steps=10)
        for _ in range(8):
            optimizer.step()
            steps.step()
            full, *_, tenth = (group["lr"] for group in optimizer.param_groups)
            assert tenth == pytest.approx(full / 10)


def test_fixups_groups_are_the_authors():
    """By name, as in their code: `bias` and `scale` at a tenth; alpha, which they do not have, is not."""
    model = dctps.sparsify_(build_model("fixup-resnet20", 10, 3), 0.01)
    slow = {p for group in parameter_groups(model, 0.1) if group["lr_scale"] == 0.1 for p in group["params"]}
    expected = {name for name, _ in model.named_parameters() if "bias" in name or "scale" in name}
    assert {name for name, p in model.named_parameters() if p in slow} == expected


@pytest.mark.parametrize(
    ("scales", "message"),
    [({"gain": 0.1}, "names 'gain', which is no"), ({"scale": 0.0}, "above 0 and finite")],
)
def test_lr_scales_that_cannot_be(scales, message):
    model = Scaled()
    model.lr_scales = scales
    with pytest.raises(ValueError, match=rf"lr_scales of 'the model' \(Scaled\) .*{message}"):
        parameter_groups(model, 0.0)


def one_step(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    return parameter.item()


def groups_of(start, weight_decay):
    parameter = nn.Parameter(torch.tensor([start]))
    return parameter, [{"params": [parameter], "weight_decay": weight_decay}]


def test_sgd_with_momentum_and_decay():
    parameter, groups = groups_of(1.0, 0.5)
    value = one_step(build_optimizer("sgd", groups, lr=0.1, momentum=0.9), parameter, [1.0, 1.0])
    first = 1.0 + 0.5 * 1.0
    after = 1.0 - 0.1 * first
    second = 0.9 * first + (1.0 + 0.5 * after)
    assert value == pytest.approx(after - 0.1 * second)


def test_nesterov():
    parameter, groups = groups_of(1.0, 0.0)
    value = one_step(build_optimizer("sgd", groups, lr=0.1, momentum=0.9, nesterov=True), parameter, [2.0])
    assert value == pytest.approx(1.0 - 0.1 * (2.0 + 0.9 * 2.0))


def test_adam_adds_the_decay_to_the_gradient_and_adamw_does_not():
    # The first step of Adam is lr in the gradient's direction, whatever its size.
    parameter, groups = groups_of(10.0, 0.5)
    assert one_step(build_optimizer("adam", groups, lr=0.1), parameter, [-1.0]) == pytest.approx(9.9)
    parameter, groups = groups_of(10.0, 0.5)
    assert one_step(build_optimizer("adamw", groups, lr=0.1), parameter, [-1.0]) == pytest.approx(
        10 - 0.5 + 0.1
    )


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="did you mean 'adam'"):
        build_optimizer("adm", groups_of(1.0, 0.0)[1], lr=0.1)
