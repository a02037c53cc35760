import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from dctps.training import Mixup, Precision, Processes, build_schedule, train_epoch


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_the_weight_is_the_larger_half_of_a_beta_draw(alpha):
    mixup = Mixup(alpha, seed=5)
    weights = [mixup.weight(epoch, step) for epoch in range(20) for step in range(20)]
    folded = stats.beta(alpha, alpha)
    # P(max(w, 1 - w) <= x) = F(x) - F(1 - x); a right sampler fails this once in 10,000 seeds.
    test = stats.kstest(weights, lambda x: folded.cdf(x) - folded.cdf(1 - x))
    assert test.pvalue > 1e-4
    assert min(weights) >= 0.5 and max(weights) <= 1


def test_a_batch_is_mixed_with_a_permutation_of_itself():
    images = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7)
    mixed, others, weight = Mixup(1.0, seed=0)(images, labels, epoch=1, step=2)
    assert sorted(others.tolist()) == labels.tolist() != others.tolist()
    expected = weight * images + (1 - weight) * images[others]
    assert torch.allclose(mixed, expected, atol=1e-6)
    again = Mixup(1.0, seed=0)(images, labels, epoch=1, step=2)
    assert torch.equal(again[0], mixed) and again[2] == weight
    for seed, epoch, step in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert Mixup(1.0, seed=seed)(images, labels, epoch=epoch, step=step)[2] != weight


@pytest.mark.parametrize("alpha", [0.0, -1.0, 5.0, math.nan])
def test_an_alpha_that_cannot_be(alpha):
    with pytest.raises(ValueError, match=r"must be in \(0, 4\]"):
        Mixup(alpha, seed=0)


def test_a_step_minimises_the_mixed_cross_entropy():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 5, generator=generator), torch.randint(3, (8,), generator=generator)
    model = nn.Linear(5, 3)
    weight, bias = (p.detach().clone().requires_grad_() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mixup = Mixup(1.0, seed=0)
    metrics = train_epoch(
        model,
        [(x, y)],
        optimizer,
        build_schedule("constant", optimizer, total_steps=1),
        epoch=3,
        precision=Precision("off", "cpu"),
        mixup=mixup,
    )
    mixed, others, share = mixup(x, y, epoch=3, step=0)
    logs = F.linear(mixed, weight, bias).log_softmax(1)
    target = share * F.one_hot(y, 3) + (1 - share) * F.one_hot(others, 3)
    loss = -(target * logs).sum(1).mean()
    loss.backward()
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-6)
    assert metrics.accuracy == (logs.argmax(1) == y).double().mean().item()
    assert torch.allclose(model.weight, weight - 0.1 * weight.grad, atol=1e-6)


class Half(Processes):
    """One of two processes, without the other."""

    def add_gradients_(self, parameters):
        return

    def sums(self, *numbers):
        return torch.stack([number.double() for number in numbers])


def test_processes_mix_the_whole_batch_and_share_it_out():
    x, y = torch.arange(12.0).view(6, 2), torch.arange(6) % 2
    seen = []
    for rank in range(2):
        model = nn.Linear(2, 2)
        model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = build_schedule("constant", optimizer, total_steps=1)
        options = {"epoch": 1, "precision": Precision("off", "cpu"), "mixup": Mixup(1.0, seed=0)}
        train_epoch(model, [(x, y)], optimizer, schedule, **options, processes=Half(rank, 2))
    whole, _, _ = Mixup(1.0, seed=0)(x, y, epoch=1, step=0)
    assert torch.equal(torch.cat(seen), whole)
