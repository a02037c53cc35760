"""What makes a network is in its state, or the state is refused: swaps, copies, casts, empty tensors."""

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

import dctps
from dctps import DpSConv1d, DpSConv2d, DpSLinear, project_, sparsify_
from dctps.identity.packed import digest_of, pack, unpack
from dctps.stacks.stack import Stack

SEEDED = ("sdct", "hadamard", "gaussian")
X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0, offset: str = "sdct") -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(
            nn.Conv2d(2, 4, 3),
            nn.ReLU(),
            nn.Flatten(2),
            nn.Conv1d(4, 4, 5, groups=2),
            nn.ReLU(),
            nn.Flatten(),
        ),
        nn.Linear(48, 5),
    )
    sparsify_(model, 0.2, offset=offset, allocation="erk", seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    return model


def plane(seed: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = project_(nn.Sequential(nn.Flatten(), nn.Linear(72, 5)), 7, projection="dense", seed=seed)
    with torch.no_grad():
        model.theta_d.normal_()
    return model


@pytest.mark.parametrize("offset", SEEDED)
def test_a_foreign_state_is_obeyed_for_the_call(offset: str) -> None:
    one, other = network(0, offset), network(1234567, offset)
    mine, theirs = one(X), other(X)
    assert torch.equal(functional_call(one, other.state_dict(), (X,)), theirs)
    assert torch.equal(one(X), mine)
    for tensors in (one, other):
        parameters, buffers = dict(tensors.named_parameters()), dict(tensors.named_buffers())
        assert torch.equal(functional_call(one, (parameters, buffers), (X,)), tensors(X))
    with pytest.raises(ValueError, match=r"layer '0': its support is not the one that was recorded"):
        functional_call(one, {n: b for n, b in other.named_buffers() if "identity" not in n}, (X,))
    with pytest.raises(ValueError, match=r"layer '0': its support is not the one that was recorded"):
        functional_call(one, {n: b for n, b in other.named_buffers() if "support" not in n}, (X,))


def test_a_hyperplane_obeys_a_foreign_state() -> None:
    one, other = plane(0), plane(1)
    assert not torch.equal(one(X), other(X))
    assert torch.equal(functional_call(one, other.state_dict(), (X,)), other(X))
    assert len(one.identity) == len(plane(1234567).identity)
    with torch.no_grad():
        one.theta_d.copy_(other.theta_d)
        one.identity.copy_(other.identity)
    with pytest.raises(ValueError, match=r"this Hyperplane: another network's .* was copied"):
        one(X)


def call_together(models: list[nn.Module]) -> Tensor:
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    return torch.vmap(lambda p, b: functional_call(models[0], (p, b), (X,)))(parameters, buffers)


def test_networks_of_one_d_are_called_together() -> None:
    for models in ([network(s, "dct") for s in (0, 1, 2)], [network(s, "zero") for s in (0, 1)]):
        assert not torch.equal(models[0][0].support, models[1][0].support)
        for ours, model in zip(call_together(models), models, strict=True):
            assert torch.allclose(ours, model(X), atol=1e-5)
    with torch.no_grad():  # one of the networks is damaged
        models[1][6].support.add_(1)
    with pytest.raises(ValueError, match=r"layer '6'"):
        call_together(models)


@pytest.mark.parametrize("offset", SEEDED)
def test_networks_of_other_d_are_not(offset: str) -> None:
    with pytest.raises(ValueError, match=r"layer '0': torch.vmap calls networks whose fixed parts differ"):
        call_together([network(0, offset), network(1, offset)])


def test_copies_by_hand() -> None:
    """Whole copies of another network, tensor by tensor: refused, as an average that moves looks the same."""
    one, other = network(0), network(1)
    for tensors in (lambda m: m.state_dict().values(), lambda m: [*m.parameters(), *m.buffers()]):
        copied = copy.deepcopy(one)
        with torch.no_grad():
            for mine, theirs in zip(tensors(copied), tensors(other), strict=True):
                mine.copy_(theirs)
        for use in (
            lambda m: m(X),
            lambda m: m.state_dict(),
            lambda m: copy.deepcopy(m)(X),
            lambda m: pickle.loads(pickle.dumps(m))(X),
            lambda m: copy.deepcopy(m).double()(X.double()),
        ):
            with pytest.raises(ValueError, match=r"layer '0'.*copied over.*load_state_dict.*AveragedModel"):
                use(copied)
        copied.load_state_dict(other.state_dict())
        assert torch.equal(copied(X), other(X))
    same = copy.deepcopy(one)
    with torch.no_grad():  # the same content again, as DDP's broadcast sends it
        for mine in (*same.parameters(), *same.buffers()):
            mine.copy_(mine.clone())
    assert torch.equal(same(X), one(X))


def test_writing_to_data_is_seen_when_the_mode_changes() -> None:
    one, other = network(0), network(1)
    one(X)
    for mine, theirs in zip(
        [*one.parameters(), *one.buffers()], [*other.parameters(), *other.buffers()], strict=True
    ):
        mine.data.copy_(theirs.data)
    with pytest.raises(ValueError, match="layer '0'.*copied over"):
        one.eval()(X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_cast_leaves_an_identity_whole(dtype: torch.dtype) -> None:
    for seed in range(20):
        words = pack({"name": "sdct", "shape": [9, 9], "groups": 1, "seed": seed, "layer": "a"})
        assert unpack(words).spec["seed"] == seed
        for changed in (words.to(dtype).long(), (0.5 * words.to(dtype) + 0.5 * words.to(dtype)).long()):
            with pytest.raises(ValueError, match="averaged or cast"):
                unpack(changed)
    layer = DpSLinear(30, 20, density=0.1).type(dtype)
    if dtype != torch.float64 or layer.support.dtype != torch.int64:
        with pytest.raises(ValueError, match="this DpSLinear"):
            layer(torch.randn(2, 30, dtype=dtype))


def test_identities_have_one_length() -> None:
    for layer, blocks in (
        ("", 1),
        ("model.vision_tower.encoder.layers.23.self_attn.out_proj", 1),
        ("x" * 1000, 5),
    ):
        sizes = {
            len(pack({"name": name, "shape": [4096, 4096, 3, 3], "groups": 1, "seed": seed, "layer": layer}))
            for name in ("dct", "hadamard", "zero")
            for seed in (0, 7, 1234567, 2**128 - 1)
        }
        assert sizes == {32 * blocks}
    deep = nn.ModuleDict({"x" * 400: nn.Linear(8, 8)})
    sparsify_(deep, 0.5, offset="sdct", seed=3)
    other = copy.deepcopy(deep)
    other.load_state_dict(deep.state_dict())
    short = sparsify_(nn.ModuleDict({"x" * 400: nn.Linear(8, 8)}), 0.5, offset="sdct", seed=4)
    short.load_state_dict(deep.state_dict())
    bare = DpSLinear(8, 8, nnz=deep["x" * 400].nnz, offset="sdct")
    bare.load_state_dict(deep["x" * 400].state_dict())  # a longer name than its own
    assert torch.equal(bare.to_dense(), deep["x" * 400].to_dense())
    assert torch.equal(short["x" * 400].to_dense(), bare.to_dense())


def old_state(model: nn.Module) -> dict[str, Tensor]:
    """As version 0.1 wrote it."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("identity"):
            text = json.dumps(unpack(tensor).spec).encode()
            name, tensor = (
                name.removesuffix("identity") + "_extra_state",
                torch.frombuffer(bytearray(text), dtype=torch.uint8),
            )
        state[name] = tensor
    return state


@pytest.mark.parametrize("offset", ["dct", *SEEDED, "zero"])
def test_states_of_version_0_1_load(offset: str) -> None:
    saved = network(3, offset)
    with torch.device("meta"):
        empty = network(1, offset)
    for model, assign in ((network(1234567, offset), False), (network(0, offset), True), (empty, True)):
        model.load_state_dict(old_state(saved), strict=True, assign=assign)
        assert torch.equal(model(X), saved(X))
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), saved.state_dict().values(), strict=True)
        )
    other = plane(1)
    other.load_state_dict(old_state(plane(0)))
    assert torch.equal(other(X), plane(0)(X))
    broken = old_state(saved) | {"0._extra_state": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(RuntimeError, match="layer '0': what the state says of its offset.*unreadable"):
        saved.load_state_dict(broken)


def test_a_part_of_a_state() -> None:
    one, other = network(0), network(0)
    with torch.no_grad():
        other[6].values.normal_()
    one.load_state_dict({"6.bias": torch.ones(5)}, strict=False)
    assert torch.equal(one[6].bias, torch.ones(5)) and one(X) is not None
    part = {k: v for k, v in network(9).state_dict().items() if k in ("6.values", "6.support")}
    one.load_state_dict(part, strict=False)  # under the present offset
    assert torch.equal(one[6].support, part["6.support"]) and one(X) is not None
    with pytest.raises(RuntimeError, match="layer '6': the support of the state dict"):
        one.load_state_dict({"6.identity": network(1).state_dict()["6.identity"]}, strict=False)


def test_empty_tensors_are_filled_or_refused() -> None:
    saved = network(0)
    with torch.device("meta"):
        meta = network(1)
    for model in (network(1), meta):
        model.to_empty(device="cpu")
        for b in model.buffers():
            b.fill_(0)
        state = model.state_dict()  # as a distributed checkpoint lists what it is to fill
        for use in (lambda m: m(X), dctps.report, lambda m: m[0].weight, dctps.merge_):
            with pytest.raises(ValueError, match=r"layer '0': .*to_empty.*load_state_dict"):
                use(model)
        assert "DpSLinear" in repr(model) and state.keys() == saved.state_dict().keys()
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(saved.state_dict()[name])
        model.load_state_dict(state)
        assert torch.equal(model(X), saved(X))
    drawn = sparsify_(nn.Sequential(nn.Linear(20, 10)), 0.2, offset="gaussian", seed=4)
    again = copy.deepcopy(drawn).to_empty(device="cpu")
    again[0].reset_parameters()
    assert torch.equal(again[0].to_dense(), drawn[0].to_dense())


def test_files_fill_empty_tensors(tmp_path) -> None:  # type: ignore[no-untyped-def]
    saved = network(0)
    dctps.save_pretrained(saved, tmp_path)
    for other in (copy.deepcopy(saved).to_empty(device="cpu"), copy.deepcopy(saved).to("meta")):
        dctps.load_pretrained_(other, tmp_path)
        assert torch.equal(other(X), saved(X)) and not any(t.is_meta for t in other.state_dict().values())
        other.to(torch.float32).load_state_dict(saved.state_dict())


def test_copies_and_moves_stay_whole() -> None:
    model = network(0)
    expected = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.inference_mode():
        inferred = copy.deepcopy(model)
        assert torch.equal(inferred(X), expected) and torch.equal(inferred.eval()(X), expected)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for other in (*copies, model.half().float(), model.to("cpu"), model.share_memory()):
        other(X)
        other.load_state_dict(other.state_dict())
        assert torch.equal(other.state_dict()["0.identity"], model[0].identity)
    layer = DpSLinear(12, 9, support=torch.tensor([5, 3]))
    layer.support.copy_(torch.tensor([1, 2]))
    layer.seal()
    assert layer.to_dense().shape == (9, 12)
    assert unpack(layer.identity).digest == digest_of(torch.tensor([1, 2]))
    layer.support.copy_(torch.tensor([2, 2]))
    with pytest.raises(ValueError, match=r"not sorted positions in 0..107, each once"):
        layer.seal()


LAYERS = {
    "linear": (lambda **kw: DpSLinear(60, 50, density=0.1, **kw), (4, 60)),
    "wide linear": (lambda **kw: DpSLinear(640, 600, density=0.01, **kw), (64, 640)),
    "strips": (lambda **kw: DpSConv2d(32, 64, 3, padding=1, density=0.05, **kw), (8, 32, 8, 8)),
    "depthwise": (lambda **kw: DpSConv2d(16, 16, 3, groups=16, density=0.2, **kw), (8, 16, 8, 8)),
    "1 x 1": (lambda **kw: DpSConv2d(32, 64, 1, density=0.1, **kw), (2, 32, 5, 5)),
    "conv1d": (lambda **kw: DpSConv1d(8, 6, 3, density=0.2, **kw), (2, 8, 9)),
}


@pytest.mark.parametrize("damage", ["order", "twice", "negative", "past"])
@pytest.mark.parametrize("offset", ["dct", "zero"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_damaged_support_is_refused_on_every_path(kind: str, offset: str, damage: str) -> None:
    build, shape = LAYERS[kind]
    for backend in ("auto", "dense", "transform", "native"):
        model = nn.Sequential(build(offset=offset))
        layer, x = model[0], torch.randn(shape)
        layer.backend = backend
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "native" without the library
            try:
                model(x)
            except ValueError:
                continue  # this kind has no such path
        ruin(layer, damage)
        uses = (
            lambda: model(x),
            layer.to_dense,
            lambda: dctps.report(model),
            layer.merged,
        )
        for use in uses:
            with pytest.raises(
                ValueError, match=r"this DpS\w+: its support is not sorted positions in 0..\d+"
            ):
                use()
        with pytest.raises(ValueError, match="its support is not sorted"):
            model.state_dict()


@pytest.mark.parametrize("damage", ["order", "twice", "negative", "past"])
@pytest.mark.parametrize("kind", ["RigL", "SET", "DSR"])
def test_dynamics_refuse_a_damaged_support(kind: str, damage: str) -> None:
    model = sparsify_(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 5)), 0.3, offset="zero")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moves = getattr(dctps, kind)(model, optimizer, update_interval=1, end=10)
    model(torch.randn(4, 20)).sum().backward()
    optimizer.step()
    values = model[0].values.detach().clone()
    ruin(model[0], damage)
    with pytest.raises(ValueError, match="layer '0': its support is not sorted positions in 0..199"):
        moves.step()
    moves.close()
    assert torch.equal(model[0].values, values)


@pytest.mark.parametrize("damage", ["order", "twice", "negative", "past"])
@pytest.mark.parametrize("double", [False, True])
def test_stacks_and_files_refuse_a_damaged_support(damage: str, double: bool, tmp_path) -> None:  # type: ignore[no-untyped-def]
    models = [
        sparsify_(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 5)), 0.2, seed=s)
        for s in (0, 1)
    ]
    dtype = torch.float64 if double else torch.float32  # torch operations, native code
    for model in models:
        model.to(dtype)
    images, labels = X.to(dtype), torch.tensor([0, 1, 2])
    Stack(models).step(images, labels)
    ruin(models[1][2], damage)
    with pytest.raises(ValueError, match="layer '2': its support is not sorted positions in 0..319"):
        Stack(models).step(images, labels)
    for use in (lambda: dctps.save_pretrained(models[1], tmp_path), lambda: dctps.explain(models[1], images)):
        with pytest.raises(ValueError, match="layer '2': its support is not sorted"):
            use()
    assert not list(tmp_path.iterdir())


def ruin(layer: nn.Module, damage: str) -> None:
    support = layer.get_buffer("support")
    with torch.no_grad():
        if damage == "order":
            support.copy_(support.flip(0))
        elif damage == "twice":
            support[1] = support[0]
        elif damage == "negative":
            support.sub_(int(support[0]) + 1)
        else:
            support.add_(layer.get_parameter("values").numel() * 10**6)


def test_memory_of_a_layer_that_is_gone_is_not_read():
    """The allocator gives a new layer the memory of one that was freed, with all that stands in it."""
    for _ in range(20):
        for offset in ("dct", "sdct", "hadamard", "gaussian"):
            for seed in (1, 2):
                layer = DpSLinear(16, 16, nnz=8, offset=offset, seed=seed)
                assert (layer.offset.name, layer.offset.seed) == (offset, seed)
                with torch.device("meta"):
                    empty = DpSLinear(16, 16, nnz=8, offset="hadamard", seed=3)
                del layer
                empty.to_empty(device="cpu").reset_parameters()
                assert (empty.offset.name, empty.offset.seed) == ("hadamard", 3)
                assert torch.equal(empty.weight, DpSLinear(16, 16, nnz=8, offset="hadamard", seed=3).weight)


def test_memory_of_a_hyperplane_that_is_gone_is_not_read():
    for seed in range(40):
        moved = dctps.project_(nn.Linear(8, 8), 5, seed=seed)
        assert moved.projection.seed == seed
