import torch
from torch import nn

from dctps import DpSConv2d, DpSLinear, merge_, sparsify_
from dctps.networks.surgery import named_modules


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=2, padding="same", padding_mode="circular"), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


def trained(model: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    return model


def test_merging_gives_plain_layers_with_the_same_outputs() -> None:
    torch.manual_seed(0)  # some draws make outputs so large that rounding alone exceeds the bound
    for offset in ("zero", "dct", "sdct", "hadamard", "gaussian"):
        model = trained(sparsify_(network(), 0.1, offset=offset)).eval()
        x = torch.randn(2, 3, 4, 4)
        y = model(x)
        merged = merge_(model)
        assert merged is model
        assert not any(isinstance(m, DpSLinear | DpSConv2d) for m in model.modules())
        assert type(model[0]) is nn.Conv2d and type(model[5]) is nn.Linear
        assert model[3][0].groups == 2 and model[3][0].padding_mode == "circular"
        assert torch.allclose(model(x), y, atol=1e-5)
        assert not model.training and not model[0].training


def test_a_root_and_a_shared_layer_are_merged_once() -> None:
    merged = merge_(DpSLinear(4, 3, density=0.5))
    assert type(merged) is nn.Linear
    shared = DpSLinear(4, 4, density=0.5)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    merge_(model)
    assert type(model[0]) is nn.Linear and model[0] is model[2]


def test_names_do_not_depend_on_wrappers() -> None:
    plain = [name for name, _ in named_modules(network())]
    for wrapped in (nn.DataParallel(network()), torch.optim.swa_utils.AveragedModel(network())):
        names = [name for name, _ in named_modules(wrapped)]
        assert set(plain) <= set(names)
    compiled = torch.compile(network())
    assert {name for name, _ in named_modules(compiled)} == set(plain)
    assert "module" in [name for name, _ in named_modules(nn.ModuleDict({"module": nn.ReLU()}))]
