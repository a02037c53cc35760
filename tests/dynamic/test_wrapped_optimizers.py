"""Optimizers as accelerate, transformers, Lightning and GradScaler wrap them: supports move all the same."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dctps
from dctps.dynamic import DSR, SET, RigL
from dctps.nn import DpSLayer

KINDS = {"rigl": RigL, "set": SET, "dsr": DSR}
STEPS = 6


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    return dctps.sparsify_(net, 0.3, seed=1)


def data():
    torch.manual_seed(1)
    return [(torch.randn(8, 12), torch.randint(3, (8,))) for _ in range(STEPS)]


def supports(model):
    return [layer.support.tolist() for layer in model.modules() if isinstance(layer, DpSLayer)]


def start(name, model, optimizer):
    return KINDS[name](model, optimizer, update_interval=2, end=100, drop_fraction=0.4)


def train(model, optimizer, dynamics, backward=torch.Tensor.backward, step=None):
    for x, y in data():
        optimizer.zero_grad()
        backward(nn.functional.cross_entropy(model(x), y))
        (step or optimizer.step)()
        dynamics.step()
    return supports(model)


def plain(name):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return train(model, optimizer, start(name, model, optimizer))


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate(name, accelerator):
    begin = network()
    model, optimizer = accelerator.prepare(begin, torch.optim.Adam(begin.parameters(), 0.01))
    dynamics = start(name, model, optimizer)
    assert train(model, optimizer, dynamics, accelerator.backward) == plain(name) != supports(network())
    assert dynamics.steps == STEPS


def test_steps_that_accelerate_leaves_out_do_not_count(accelerator):
    begin = network()
    accelerator.gradient_accumulation_steps = 3
    model, optimizer = accelerator.prepare(begin, torch.optim.SGD(begin.parameters(), 0.1))
    rigl = RigL(model, optimizer, update_interval=1, end=100)
    for x, y in data():
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            rigl.step()
            optimizer.zero_grad()
    assert rigl.steps == STEPS // 3


@pytest.mark.parametrize("name", KINDS)
def test_the_trainer_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")

    class Moves(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, *, model, optimizer, **_):
            self.dynamics = start(name, model, optimizer)

        def on_optimizer_step(self, args, state, control, **_):
            self.dynamics.step()

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x, labels):
            y = self.network(x)
            return {"loss": nn.functional.cross_entropy(y, labels), "logits": y}

    torch.manual_seed(1)
    rows = [{"x": x, "labels": int(y)} for batch in data() for x, y in zip(*batch, strict=True)]
    moves = Moves()
    model = WithLoss()
    before = supports(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trainer's own
        transformers.Trainer(
            model,
            transformers.TrainingArguments(
                str(tmp_path), max_steps=STEPS, per_device_train_batch_size=8, use_cpu=True, report_to=[],
                save_strategy="no", disable_tqdm=True,
            ),
            train_dataset=rows,
            callbacks=[moves],
        ).train()  # fmt: skip
    assert moves.dynamics.steps == STEPS
    assert supports(model) != before


@pytest.mark.parametrize("name", KINDS)
def test_lightning_fabric_and_trainer(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def configure_optimizers(self):
            return torch.optim.Adam(self.network.parameters(), 0.01)

        def on_train_start(self):
            assert type(self.optimizers()).__name__ == "LightningAdam"
            self.dynamics = start(name, self.network, self.optimizers())

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def on_train_batch_end(self, *_):
            self.dynamics.step()

    x, y = (torch.cat(part) for part in zip(*data(), strict=True))
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True,
        ).fit(module, DataLoader(TensorDataset(x, y), 8))  # fmt: skip
        assert supports(module) == plain(name)

        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        begin = network()
        model, optimizer = fabric.setup(begin, torch.optim.Adam(begin.parameters(), 0.01))
        assert train(model, optimizer, start(name, begin, optimizer), fabric.backward) == plain(name)


@pytest.mark.parametrize("name", KINDS)
def test_a_scaler_around_the_plain_optimizer(name):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)

    def step():
        scaler.step(optimizer)
        scaler.update()

    dynamics = start(name, model, optimizer)
    assert train(model, optimizer, dynamics, lambda loss: scaler.scale(loss).backward(), step) == plain(name)


def test_an_optimizer_with_a_state_of_its_own_is_not_taken_apart():
    class Lookahead(torch.optim.Optimizer):
        def __init__(self, optimizer):
            super().__init__([p for group in optimizer.param_groups for p in group["params"]], {})
            self.optimizer = optimizer

        def step(self):
            self.optimizer.step()

    model = network()
    outer = Lookahead(torch.optim.SGD(model.parameters(), 0.1))
    assert RigL(model, outer, end=10).optimizer is outer


def test_what_is_no_optimizer_is_named():
    with pytest.raises(ValueError, match=r"follows the steps of a torch.optim.Optimizer, and list is none"):
        RigL(network(), [1], end=10)
    old = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    for kind in KINDS.values():
        with pytest.raises(ValueError, match="'0': make it after sparsify_, of model.parameters()"):
            kind(network(), old, end=10)
