"""Averages of a network are those of its dense weights, or are refused with the remedy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from tests.support.layers import largest_difference
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn

import dctps
from dctps import project_, sparsify_

STEPS = 3
AVERAGED = r"layer '0': its support and identity were averaged.*dctps.AveragedModel.*use_buffers=False"


def layer(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return sparsify_(nn.Sequential(nn.Linear(width, width)), 2**10 / width**2, offset="sdct")


def course(model: nn.Module) -> Iterator[None]:
    """The network after each step of a walk."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=draw))
        yield


class Dense:
    """The moving average of the plain dense layer, in float64: the first network, then d A + (1 - d) W."""

    def __init__(self, decay: float) -> None:
        self.decay, self.weight, self.bias = decay, None, None

    def update(self, model: nn.Module) -> None:
        weight, bias = model[0].weight.detach().double(), model[0].bias.detach().double()
        if self.weight is None:
            self.weight, self.bias = weight, bias.clone()
        else:
            self.weight.mul_(self.decay).add_(weight, alpha=1 - self.decay)
            self.bias.mul_(self.decay).add_(bias, alpha=1 - self.decay)

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.double(), self.weight, self.bias).float()


def by_torch(cls: type, use_buffers: bool, make: Callable, key: str) -> Callable:  # type: ignore[type-arg]
    def start(model: nn.Module, decay: float) -> tuple[nn.Module, Callable[[nn.Module], None]]:
        average = cls(model, use_buffers=use_buffers, **{key: make(decay)})
        return average, average.update_parameters

    return start


def by_hand(integers: Callable[[Tensor, Tensor, float], Tensor]) -> Callable:  # type: ignore[type-arg]
    """The usual loop over state_dict().values(), as timm's ModelEmaV2 and V3 have it."""

    def start(model: nn.Module, decay: float) -> tuple[nn.Module, Callable[[nn.Module], None]]:
        average = copy.deepcopy(model)
        begun: list[bool] = []

        @torch.no_grad()
        def update(model: nn.Module) -> None:
            for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                rate = decay if begun else 0.0
                if mine.is_floating_point():
                    mine.copy_(rate * mine + (1 - rate) * theirs)
                else:
                    mine.copy_(integers(mine, theirs, rate))
            begun.append(True)

        return average, update

    return start


RIGHT = {
    "torch": by_torch(swa_utils.AveragedModel, False, get_ema_multi_avg_fn, "multi_avg_fn"),
    "torch, one by one": by_torch(swa_utils.AveragedModel, False, get_ema_avg_fn, "avg_fn"),
    "dctps": by_torch(dctps.AveragedModel, False, get_ema_multi_avg_fn, "multi_avg_fn"),
    "dctps with buffers": by_torch(dctps.AveragedModel, True, get_ema_multi_avg_fn, "multi_avg_fn"),
    "dctps, one by one": by_torch(dctps.AveragedModel, True, get_ema_avg_fn, "avg_fn"),
    "hand, integers copied": by_hand(lambda mine, theirs, rate: theirs),
}
REFUSED = {
    "torch with buffers": by_torch(swa_utils.AveragedModel, True, get_ema_multi_avg_fn, "multi_avg_fn"),
    "torch, one by one": by_torch(swa_utils.AveragedModel, True, get_ema_avg_fn, "avg_fn"),
    "hand, all averaged": by_hand(lambda mine, theirs, rate: rate * mine + (1 - rate) * theirs),
}


@pytest.mark.parametrize("width", [512, 4096])
@pytest.mark.parametrize("decay", [0.5, 0.999, 0.9999])
def test_an_average_is_that_of_the_dense_network(decay: float, width: int) -> None:
    model, expected, x = layer(width), Dense(decay), torch.randn(4, width)
    right = {name: start(model, decay) for name, start in RIGHT.items()}
    refused = {name: start(model, decay) for name, start in REFUSED.items()}
    stopped = {}
    for _ in course(model):
        expected.update(model)
        for _, update in right.values():
            update(model)
        for name, (_, update) in refused.items():
            try:
                update(model)
            except ValueError as error:
                stopped[name] = str(error)
    for name, (average, _) in right.items():
        assert largest_difference(average(x), expected(x)) <= 2e-5, name
    for average, _ in refused.values():
        with pytest.raises(ValueError, match=AVERAGED):
            average(x)
        with pytest.raises(ValueError, match=AVERAGED):
            average.state_dict()
    assert stopped.keys() == {"hand, all averaged"} and "layer '0'" in stopped["hand, all averaged"]


@pytest.mark.parametrize("use_buffers", [False, True])
def test_a_mean_with_norms_and_a_hyperplane(use_buffers: bool) -> None:
    """Plain means, batch norms, convolutions, and buffers that are averaged where they are numbers."""
    torch.manual_seed(0)
    nets = [
        sparsify_(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)), 0.3),
        project_(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), 5),
    ]
    x = torch.randn(4, 2, 6, 6)
    for net in nets:
        average = dctps.AveragedModel(net, use_buffers=use_buffers)
        weights = []
        for _ in course(net):
            net.train()(torch.randn(4, 2, 6, 6))
            average.update_parameters(net)
            weights.append(copy.deepcopy(net))
        merged = [dctps.merge_(copy.deepcopy(w)) for w in weights]
        expected = dctps.merge_(copy.deepcopy(net)).eval()
        with torch.no_grad():
            for p, *others in zip(expected.parameters(), *(m.parameters() for m in merged), strict=True):
                p.copy_(torch.stack(others).double().mean(0))
            for b, *others in zip(expected.buffers(), *(m.buffers() for m in merged), strict=True):
                if use_buffers and b.is_floating_point():
                    b.copy_(torch.stack(others).mean(0))
        assert largest_difference(average.eval()(x), expected(x)) <= 1e-5
        average.load_state_dict(average.state_dict())


def dynamics(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dctps.RigL:
    kinds = {"rigl": dctps.RigL, "set": dctps.SET, "dsr": dctps.DSR}
    return kinds[name](model, optimizer, update_interval=2, end=1000, drop_fraction=0.5)


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("name", ["rigl", "set", "dsr"])
def test_an_average_follows_moving_supports(name: str, use_buffers: bool) -> None:
    """A <- (d A + (1 - d) W) at the present support, by dense arrays; alpha D is averaged everywhere."""
    torch.manual_seed(0)
    model = sparsify_(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 8, bias=False)), 0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    moves = dynamics(name, model, optimizer)
    average = dctps.AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    dense: dict[nn.Module, Tensor] = {}
    alphas: dict[nn.Module, Tensor] = {}
    before = model[0].support.clone()
    for _ in range(30):
        optimizer.zero_grad()
        model(torch.randn(32, 20)).square().mean().backward()
        optimizer.step()
        moves.step()
        average.update_parameters(model)
        for m in (model[0], model[2]):
            s = torch.zeros(m.offset.shape, dtype=torch.float64).flatten()
            s[m.support] = m.values.detach().double()
            a = m.alpha.detach().double()
            dense[m] = torch.where(mask(m), 0.9 * dense[m] + 0.1 * s, 0.0) if m in dense else s
            alphas[m] = 0.9 * alphas[m] + 0.1 * a if m in alphas else a.clone()
    assert len(before) != model[0].nnz or not torch.equal(before, model[0].support)
    for m, own in zip((model[0], model[2]), (average.module[0], average.module[2]), strict=True):
        expected = alphas[m] * m.offset.to_dense(dtype=torch.float64) + dense[m].view(m.offset.shape)
        assert torch.equal(own.support, m.support)
        assert largest_difference(own.weight, expected.float()) <= 1e-5
    again = copy.deepcopy(average)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again(torch.ones(1, 20)), average(torch.ones(1, 20)))


def mask(m: nn.Module) -> Tensor:
    found = torch.zeros(m.offset.shape, dtype=torch.bool).flatten()
    found[m.support] = True
    return found


@pytest.mark.parametrize("name", ["rigl", "set"])
@pytest.mark.parametrize("use", ["call", "state", "weight", "report"])
def test_other_averages_of_a_moving_support_are_refused(name: str, use: str) -> None:
    torch.manual_seed(0)
    model = sparsify_(nn.Sequential(nn.Linear(20, 16)), 0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moves = dynamics(name, model, optimizer)
    average = swa_utils.AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(32, 20)).square().mean().backward()
        optimizer.step()
        moves.step()
        average.update_parameters(model)
    uses = {
        "call": lambda: average(torch.randn(2, 20)),
        "state": average.state_dict,
        "weight": lambda: average.module[0].weight,
        "report": lambda: dctps.report(average),
    }
    with pytest.raises(ValueError, match=r"layer '0'.*copied over.*dctps.AveragedModel"):
        uses[use]()


def test_an_average_of_another_network_is_refused() -> None:
    nets = [sparsify_(nn.Sequential(nn.Linear(20, 16)), 0.2, offset="sdct", seed=s) for s in (0, 1)]
    average = dctps.AveragedModel(nets[0])
    with pytest.raises(ValueError, match=r"layer '0' has another offset than its average"):
        average.update_parameters(nets[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("moving", ["refused", "followed"])
def test_lightning_while_supports_move(moving: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

    class Average(WeightAveraging):  # as docs/torch.md has it
        def setup(self, trainer, pl_module, stage) -> None:  # type: ignore[no-untyped-def]
            super().setup(trainer, pl_module, stage)
            if stage == "fit":
                self._average_model = dctps.AveragedModel(
                    pl_module, avg_fn=get_ema_avg_fn(0.9), use_buffers=True
                )

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = sparsify_(nn.Sequential(nn.Linear(20, 16)), 0.3)

        def training_step(self, batch: Tensor) -> Tensor:
            return self.net(batch).square().mean()

        def validation_step(self, batch: Tensor) -> None:
            assert largest_difference(self.net(batch), average(batch)) <= 1e-6

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            self.moves = dctps.RigL(self.net, optimizer, update_interval=1, end=100)
            return optimizer

        def optimizer_step(self, *args: object, **kwargs: object) -> None:
            super().optimizer_step(*args, **kwargs)
            self.moves.step()
            average.update_parameters(self.net)

    module = Module()
    average = dctps.AveragedModel(module.net, avg_fn=get_ema_avg_fn(0.9))
    before = module.net[0].support.clone()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[Average() if moving == "followed" else EMAWeightAveraging(use_buffers=False, decay=0.9)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    loaders = [torch.utils.data.DataLoader(torch.randn(12, 20), batch_size=4) for _ in range(2)]
    if moving == "refused":  # when the first checkpoint is written
        with pytest.raises(ValueError, match=r"layer '0'.*copied over.*dctps.AveragedModel"):
            trainer.fit(module, loaders[0])
        return
    trainer.fit(module, *loaders)
    assert not torch.equal(before, module.net[0].support)
    assert largest_difference(module.net.eval()(torch.eye(20)), average.eval()(torch.eye(20))) <= 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["buffers", "plain", "ema"])
def test_lightning(kind: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.expected = layer(512), Dense(0.999)
            with torch.no_grad():
                self.net[0].values.normal_()

        def training_step(self, batch: Tensor) -> Tensor:
            return self.net(batch).square().mean()

        def validation_step(self, batch: Tensor) -> None:
            assert largest_difference(self.net(batch), self.expected(batch)) <= 2e-5

        def on_train_batch_end(self, *_: object) -> None:
            self.expected.update(self.net)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=10.0)

    callback = {
        "buffers": lambda: EMAWeightAveraging(decay=0.999),  # use_buffers=True
        "plain": lambda: WeightAveraging(use_buffers=False, avg_fn=get_ema_avg_fn(0.999)),
        "ema": lambda: EMAWeightAveraging(decay=0.999, use_buffers=False),
    }[kind]()
    module, data = Module(), torch.randn(12, 512)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    loaders = [torch.utils.data.DataLoader(data, batch_size=4) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "buffers":
            with pytest.raises(ValueError, match=r"layer '0': its support and identity were averaged"):
                trainer.fit(module, *loaders)
            return
        trainer.fit(module, *loaders)
    assert largest_difference(module.net(data), module.expected(data)) <= 2e-5
