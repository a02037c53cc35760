"""Counts are worked out by hand; shared parameters are compared with ones that the test ties in its loop."""

import copy
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tests.support.processes import in_group
from torch import Tensor, nn

import dctps
from dctps import freeze_except_norms_, plain_norms_, remove_biases_, share_norms_
from dctps.training import parameter_groups


class Block(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
        self.wide = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.second(self.first(x)).relu())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Block(4, 4), Block(8, 4), nn.BatchNorm2d(4 * 2),
        nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def images(seed: int = 0) -> Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def norms(model: nn.Module, kind: type[nn.Module] = nn.BatchNorm2d) -> list:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_plain_norms_compute_the_same_at_first_and_train_nothing():
    model = network()
    before = model(images())
    assert plain_norms_(model) is model
    torch.testing.assert_close(model(images()), before)
    counts = dctps.report(model)
    assert counts.trainable["norm"] == counts.frozen == 0
    widths = [4, 4, 4, 8, 4, 4, 8, 8, 8]
    assert counts.statistics == sum(2 * width + 1 for width in widths)
    assert "weight" not in "".join(name for name in model.state_dict() if name.startswith("1."))


def test_frozen_parameters_are_counted_apart():
    model = network()
    for norm in norms(model):
        norm.requires_grad_(False)
    counts = dctps.report(model)
    assert (counts.trainable["norm"], counts.frozen) == (0, 2 * 52)
    assert "104 frozen" in str(counts)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: nn.BatchNorm1d(6), (5, 6)),
        (lambda: nn.InstanceNorm1d(6, affine=True), (5, 6, 4)),
        (lambda: nn.GroupNorm(2, 6), (5, 6, 4)),
        (lambda: nn.LayerNorm(6), (5, 6)),
        (lambda: nn.LayerNorm(6, bias=False), (5, 6)),
        (lambda: nn.RMSNorm(6), (5, 6)),
    ],
)
def test_every_kind_of_norm(norm, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(norm(), norm())
    before = model(x)
    shared = share_norms_(copy.deepcopy(model))
    torch.testing.assert_close(shared(x), before)
    assert sum(p.numel() for p in shared.parameters()) * 2 == sum(p.numel() for p in model.parameters())
    plain = plain_norms_(model)
    torch.testing.assert_close(plain(x), before)
    assert not list(plain.parameters())
    for module in plain:
        module.reset_parameters() if hasattr(module, "reset_parameters") else None
    again = norm().requires_grad_(True)
    assert "True" in repr(again) or "weight" not in repr(plain)


def test_norms_of_one_stage_and_width_share():
    model = share_norms_(network())
    root, in_block_2, in_block_3 = [model[1], model[4], model[5]], norms(model[2]), norms(model[3])
    assert root[1].weight is root[2].weight and root[1].bias is root[2].bias
    assert root[0].weight is not root[1].weight
    assert in_block_2[0].weight is in_block_2[1].weight is not in_block_3[0].weight
    assert in_block_2[2].weight is not root[1].weight
    counts = dctps.report(model)
    assert counts.trainable["norm"] == 2 * (4 + 8 + (4 + 8) * 2)
    assert counts.statistics == 2 * 52 + 9
    means = {id(norm.running_mean) for norm in norms(model)}
    assert len(means) == 9


def test_a_stage_of_ones_own():
    model = share_norms_(network(), lambda module, name: 0)
    assert dctps.report(model).trainable["norm"] == 2 * (4 + 8)
    by_name = share_norms_(network(), lambda module, name: name.startswith("2"))
    assert by_name[1].weight is norms(by_name[3])[0].weight is not norms(by_name[2])[0].weight


def test_the_network_within_wrappers_and_single_children_is_staged_alike():
    plain, wrapped = share_norms_(network()), share_norms_(nn.Sequential(nn.Sequential(network())))
    assert dctps.report(wrapped).trainable == dctps.report(plain).trainable
    compiled = share_norms_(torch.compile(network()))
    assert dctps.report(compiled).trainable == dctps.report(plain).trainable


def test_only_what_begins_alike_is_shared():
    model = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(4)))
    for index in (1, 3):
        nn.init.zeros_(model[index].weight)
    share_norms_(model)
    assert model[0].weight is model[2].weight and model[1].weight is model[3].weight
    assert model[0].weight is not model[1].weight


def test_a_step_is_the_one_of_parameters_tied_by_hand():
    model, other = share_norms_(network()), network()
    tied = {id(norm): norm for norm in norms(model)}
    twins = [
        [b for b, a in zip(norms(other), norms(model), strict=True) if a.weight is n.weight]
        for n in tied.values()
    ]
    optimizer = torch.optim.SGD([g | {"lr": 0.1} for g in parameter_groups(model, 0.0)])
    target = torch.arange(6) % 5
    for step in range(3):
        for net in (model, other):
            net.zero_grad()
            nn.functional.cross_entropy(net(images(step)), target).backward()
        optimizer.step()
        with torch.no_grad():
            updates = []
            for group in twins:
                for key in ("weight", "bias"):
                    total = sum(getattr(norm, key).grad for norm in group)
                    updates.append([(getattr(norm, key), total) for norm in group])
            ids = {id(p) for group in updates for p, _ in group}
            for group in {tuple(id(p) for p, _ in g): g for g in updates}.values():
                for parameter, total in group:
                    parameter -= 0.1 * total
            for parameter in other.parameters():
                if id(parameter) not in ids:
                    parameter -= 0.1 * parameter.grad
    for (name, a), (_, b) in zip(
        model.named_parameters(remove_duplicate=False), other.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [plain_norms_, share_norms_, remove_biases_])
@pytest.mark.parametrize("meta", [False, True])
def test_files_hold_it_once_and_come_back(tmp_path, change, meta):
    model = change(dctps.sparsify_(network(), 0.2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    model(images())
    dctps.save_pretrained(model, tmp_path)
    assert dctps.report(model).disk_bytes == (tmp_path / "model.safetensors").stat().st_size
    if meta:
        with torch.device("meta"):
            other = change(network())
    else:
        other = change(network())
    dctps.load_pretrained_(other, tmp_path)
    assert torch.equal(other.eval()(images(1)), model.eval()(images(1)))
    assert dctps.report(other).trainable == dctps.report(model).trainable
    with pytest.raises(dctps.CheckpointError, match="is in the model and not in the file"):
        dctps.load_pretrained_(network(), tmp_path)


def test_sharing_shrinks_the_file_by_what_is_shared():
    plain, shared, full = (
        dctps.report(change(dctps.sparsify_(network(), 0.2))).disk_bytes
        for change in (plain_norms_, share_norms_, lambda model: model)
    )
    assert plain < shared < full


def test_state_dicts_copies_and_devices_keep_the_sharing():
    model = share_norms_(network())
    other = share_norms_(network())
    nn.init.normal_(model[4].weight)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[5].weight, model[4].weight)
    for moved in (copy.deepcopy(model), copy.deepcopy(model).to(torch.float64)):
        assert moved[4].weight is moved[5].weight


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        (plain_norms_, nn.Linear(2, 2), "Linear has no normalisation layer with scale or shift"),
        (plain_norms_, nn.BatchNorm1d(2, affine=False), "no normalisation layer"),
        (freeze_except_norms_, nn.Linear(2, 2), "Linear has no normalisation layer.*that has some, such as"),
        (share_norms_, nn.BatchNorm1d(2), "no two of the 1 normalisation layers"),
        (share_norms_, nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3)), "no two of the 2"),
        (share_norms_, nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2)), "no two of the 2"),
        (remove_biases_, nn.Sequential(nn.Linear(2, 2, bias=False)), "no layer with a bias"),
        (remove_biases_, nn.BatchNorm1d(2), "no layer with a bias"),
    ],
)
def test_nothing_to_do_is_an_error(change, model, message):
    with pytest.raises(ValueError, match=message):
        change(model)


def test_norms_train_alone():
    """Everything else stays bit for bit, the classifier and its bias too; running statistics move."""
    model = network()
    assert freeze_except_norms_(model) is model
    counts = dctps.report(model)
    assert counts.trainable == {**dict.fromkeys(counts.trainable, 0), "norm": 2 * (3 * 4 + 8 + 4 + 4 + 8 * 3)}
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        nn.functional.cross_entropy(model(images()), torch.arange(6) % 5).backward()
        optimizer.step()
    for old, new in zip(before.modules(), model.modules(), strict=True):
        is_norm = isinstance(new, nn.BatchNorm2d)
        for a, b in zip(old.parameters(recurse=False), new.parameters(recurse=False), strict=True):
            assert is_norm or torch.equal(a, b)
        assert not is_norm or not torch.equal(old.running_mean, new.running_mean)
    assert not torch.equal(before[5].weight, model[5].weight) and not torch.equal(
        before[1].bias, model[1].bias
    )


def test_biases_go_from_dense_and_converted_layers():
    model = dctps.sparsify_(network(), 0.2, filter_fn=lambda module, name: name != "8")
    biases = [module.bias for module in model.modules() if isinstance(module, nn.Linear | dctps.DpSConv2d)]
    total = sum(bias.numel() for bias in biases)
    assert dctps.report(model).trainable["bias"] == total == 4 + 2 * (4 + 4 + 8) + 5
    expected = copy.deepcopy(model)
    for module in expected.modules():
        if isinstance(module, nn.Linear | dctps.DpSConv2d):
            nn.init.zeros_(module.bias)
    remove_biases_(model)
    assert dctps.report(model).trainable["bias"] == 0
    torch.testing.assert_close(model(images()), expected(images()))
    model[0].reset_parameters()
    dctps.merge_(model)(images())


def worker(rank: int, port: int, folder: Path) -> None:
    torch.save(in_group(rank, port, trained_apart), folder / f"{rank}.pt")


def trained_apart(rank: int) -> list[Tensor]:
    model = share_norms_(network())
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        wrapped(images(2 * step + rank)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_shared_norms_under_ddp(tmp_path):
    """Both processes end alike, and as one process with the mean of the two halves' gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, tmp_path), nprocs=2, join=True)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model = share_norms_(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        for rank in range(2):
            (model(images(2 * step + rank)).square().mean() / 2).backward()
        optimizer.step()
    assert len(found[0]) == len(list(model.parameters()))
    for index, parameter in enumerate(model.parameters()):
        for rank in range(2):
            torch.testing.assert_close(found[rank][index], parameter.detach(), rtol=1e-4, atol=1e-5)
