import math

import pytest
import torch

from dctps.training import build_schedule


def rates(name, total_steps, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    schedule = build_schedule(name, optimizer, total_steps=total_steps, **options)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["momentum"] == 0.9
    return seen


def test_constant():
    assert rates("constant", 7) == [0.5] * 7


def test_multistep_divides_by_ten_at_shares_of_the_run():
    expected = [0.5] * 6 + [0.05] * 2 + [0.005] * 2
    assert rates("multistep", 10, milestones=(0.6, 0.8)) == pytest.approx(expected)


def test_cosine_falls_from_the_rate_to_zero():
    expected = [0.25 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    assert rates("cosine", 40) == pytest.approx(expected)


def test_onecycle_follows_its_two_cosines():
    total = 100
    up = 0.3 * total - 1

    def cosine(start, end, share):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    low, high, final = 0.5 / 25, 0.5, 0.5 / 25 / 1e4
    expected = [
        cosine(low, high, step / up) if step <= up else cosine(high, final, (step - up) / (total - 1 - up))
        for step in range(total)
    ]
    assert rates("onecycle", total) == pytest.approx(expected)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["constant", "multistep", "cosine", "onecycle"])
def test_the_shortest_runs_work(name, total_steps):
    assert all(0 < lr <= 0.5 for lr in rates(name, total_steps))


def test_unknown_schedule():
    with pytest.raises(ValueError, match="did you mean 'onecycle'"):
        rates("onecylce", 3)
