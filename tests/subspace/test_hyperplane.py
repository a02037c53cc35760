"""Networks on a hyperplane, against theta_0 + P theta_d written out."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dctps
from dctps.checkpoint import CheckpointError
from dctps.subspace import Hyperplane, project_

PROJECTIONS = ("dense", "sparse", "fastfood")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 3)
    )


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(8, 2, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))


def moved(**choices: object) -> Hyperplane:
    model = project_(network(), 9, **choices)
    with torch.no_grad():
        model.theta_d.normal_(generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_output_and_gradient_are_those_of_the_parameters_written_out(projection: str) -> None:
    model = project_(network().double(), 9, projection=projection, seed=4)
    with torch.no_grad():
        model.theta_d.normal_(generator=torch.Generator().manual_seed(2))
    p = model.projection.to_dense(dtype=torch.float64)
    assert p.shape == (sum(q.numel() for q in network().parameters()), 9)

    # Another network, whose parameters get their place on the hyperplane one by one.
    twin, at = network().double(), 0
    with torch.no_grad():
        for parameter in twin.parameters():
            rows = p[at : at + parameter.numel()]
            at += parameter.numel()
            parameter += (rows @ model.theta_d).reshape(parameter.shape)
    x, labels = images(torch.float64), torch.arange(8) % 3
    assert torch.allclose(model(x), twin(x), atol=1e-12)
    F.cross_entropy(model(x), labels).backward()
    F.cross_entropy(twin(x), labels).backward()
    assert model.theta_d.grad is not None
    flat = torch.cat([parameter.grad.flatten() for parameter in twin.parameters()])
    assert torch.allclose(model.theta_d.grad, p.T @ flat, atol=1e-12)
    assert all(q.grad is None for q in model.network.parameters())
    # BatchNorm's statistics went on, twice in both.
    for ours, theirs in zip(model.network.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(ours, theirs)


def test_it_starts_at_the_network_and_only_theta_d_trains() -> None:
    plain, model = network(), project_(network(), 9)
    assert torch.equal(model(images()), plain(images()))
    assert [name for name, q in model.named_parameters() if q.requires_grad] == ["theta_d"]
    before = copy.deepcopy(model.network.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2, weight_decay=0.01)
    model.eval()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images()), torch.arange(8) % 3)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())


def test_the_budget_is_everyones() -> None:
    weights = 4 * 2 * 9 + 16 * 6 + 6 * 3
    sparse = dctps.sparsify_(network(), 0.1)
    assert project_(network(), density=0.1).theta_d.numel() == round(0.1 * weights)
    assert dctps.report(sparse).nnz == round(0.1 * weights)


def test_frozen_shared_and_recurrent_parameters() -> None:
    model = network()
    model[0].requires_grad_(False)
    model[5].weight = nn.Parameter(torch.randn(6, 6))
    model[5].bias = model[4].bias
    model.append(nn.Linear(6, 6))
    model[6].weight = model[5].weight
    held = model[0].weight.clone()
    projected = project_(model, 5)
    assert projected.projection.size == 4 + 4 + 96 + 6 + 36 + 6
    with torch.no_grad():
        projected.theta_d.normal_()
    merged = dctps.merge_(projected)
    assert torch.equal(merged(images()), projected(images()))
    assert merged[6].weight is merged[5].weight and merged[5].bias is merged[4].bias
    assert torch.equal(merged[0].weight, held) and not merged[0].weight.requires_grad

    lstm = nn.LSTM(3, 4)
    x = torch.randn(2, 1, 3)
    before = lstm(x)[0]
    projected = project_(lstm, 7)
    with torch.no_grad():
        projected.theta_d.normal_()
    assert not torch.allclose(projected(x)[0], before)
    assert torch.equal(projected(x)[0], dctps.merge_(projected)(x)[0])


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_merge_gives_a_plain_network_that_trains_whole(projection: str) -> None:
    model = moved(projection=projection)
    plain = dctps.merge_(model)
    assert [type(m) for m in plain.modules()] == [type(m) for m in network().modules()]
    assert torch.equal(plain(images()), model(images()))
    assert all(q.requires_grad for q in plain.parameters())
    within = dctps.merge_(nn.Sequential(moved(), nn.ReLU()))
    assert isinstance(within[0], nn.Sequential)


def test_a_hyperplane_of_a_converted_network() -> None:
    converted = dctps.sparsify_(network(), 0.2)
    model = project_(converted, 5)
    with torch.no_grad():
        model.theta_d.normal_()
    plain = dctps.merge_(model)
    assert [type(m) for m in plain.modules()] == [type(m) for m in network().modules()]
    assert torch.allclose(plain(images()), model(images()), atol=1e-5)
    assert [type(m) for m in converted][::4] == [dctps.DpSConv2d, dctps.DpSLinear]


def test_a_state_dict_brings_its_projection() -> None:
    model, other = moved(seed=3), moved(seed=4)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.eval()(images()), model.eval()(images()))
    assert other.projection == model.projection
    with pytest.raises(RuntimeError, match="it has Dense.*x8.*the state names Dense.*x9"):
        project_(network(), 8).load_state_dict(model.state_dict())
    broken = model.state_dict() | {"identity": torch.zeros(32, dtype=torch.int64)}
    with pytest.raises(RuntimeError, match="averaged or cast"):
        other.load_state_dict(broken)


def test_files(tmp_path) -> None:
    model = moved(projection="fastfood").eval()
    dctps.save_pretrained(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == dctps.report(model).disk_bytes
    torch.manual_seed(9)
    other = project_(network(), 9, projection="fastfood").eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    assert torch.equal(dctps.load_pretrained_(other, tmp_path)(images()), model(images()))
    for wrong in (
        project_(network(), 9, projection="dense"),
        project_(network(), 9, projection="fastfood", seed=1),
        network(),
    ):
        with pytest.raises(CheckpointError, match="another architecture"):
            dctps.load_pretrained_(wrong, tmp_path)
    with pytest.raises(ValueError, match="merge_"):
        dctps.save_pretrained(model, tmp_path, norms="folded")
    dctps.save_pretrained(network(), tmp_path)
    with pytest.raises(CheckpointError, match="another architecture: the hyperplanes are {} in the file"):
        dctps.load_pretrained_(other, tmp_path)


def test_report_says_what_trains_and_what_is_held() -> None:
    model = project_(network(), 9)
    found = dctps.report(model)
    size = sum(q.numel() for q in network().parameters())
    assert {kind: count for kind, count in found.trainable.items() if count} == {"dimensions": 9}
    assert (found.rows[0].kind, found.rows[0].shape, found.rows[0].nnz) == ("Hyperplane", (size, 9), 9)
    assert [row.nnz for row in found.rows[1:]] == [0, 0, 0]
    plain = dctps.report(network()).memory_bytes
    assert found.memory_bytes == plain + 4 * 9 + 4 * 9 * size + model.identity.nbytes
    assert "trainable   9 numbers: dimensions 9" in str(found)


def test_float64_half_and_per_sample_gradients() -> None:
    assert project_(network().double(), 3).theta_d.dtype == torch.float64
    half = project_(network().bfloat16(), 3)
    assert half.theta_d.dtype == torch.float32
    assert half(images(torch.bfloat16)).dtype == torch.bfloat16
    model = project_(nn.Linear(3, 2), 4)
    x = torch.randn(5, 3)

    def loss(theta: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {"theta_d": theta}, (row,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(model.theta_d.detach(), x)
    model(x).square().sum().backward()
    torch.testing.assert_close(each.sum(0), model.theta_d.grad)


def test_a_compiled_network_is_one_graph_and_follows_its_state_dict() -> None:
    model = moved(projection="fastfood").eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for seed in (0, 7):
        model.load_state_dict(moved(projection="fastfood", seed=seed).state_dict())
        torch.testing.assert_close(compiled(images()), model(images()))
        (ours,) = torch.autograd.grad(compiled(images()).square().sum(), model.theta_d)
        (theirs,) = torch.autograd.grad(model(images()).square().sum(), model.theta_d)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_projected() -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        project_(nn.ReLU(), 3)
    with pytest.raises(ValueError, match="parameter 'weight' is on the meta device"):
        project_(nn.Linear(3, 3, device="meta"), 3)
    with pytest.raises(ValueError, match="parameter 'weight' is lazy"):
        project_(nn.LazyLinear(3), 3)
    with pytest.raises(ValueError, match="on a hyperplane already: merge_"):
        project_(nn.Sequential(project_(nn.Linear(3, 3), 3), nn.Linear(2, 2)), 3)
    with pytest.raises(ValueError, match="weight' is torch.complex64"):
        project_(nn.Linear(3, 3, dtype=torch.complex64), 3)
    for choices in ({}, {"dimensions": 3, "density": 0.1}):
        with pytest.raises(ValueError, match="either dimensions or density"):
            project_(network(), **choices)
    with pytest.raises(ValueError, match="dimensions must be from 1 to .* 13, got 14"):
        project_(nn.Sequential(nn.Linear(3, 3), nn.PReLU()), 14)
    with pytest.raises(ValueError, match="no dimension to train"):
        project_(nn.Linear(3, 3), density=0.01)
    with pytest.raises(ValueError, match="did you mean 'fastfood'"):
        project_(network(), 3, projection="fastfod")
    untouched = network()
    with pytest.raises(ValueError, match="dimensions must be"):
        project_(untouched, 0)
    assert all(q.requires_grad for q in untouched.parameters())
