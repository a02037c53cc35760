"""Adapted networks in the loops of others: transformers' Trainer, accelerate, Lightning."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dctps
from dctps.adapters import load_adapter_, save_adapter
from tests.adapters.networks import LABELS, gpt2, images, quiet, small, tokens

with quiet():
    transformers = pytest.importorskip("transformers")


def rows(count, seed):
    return [{"input_ids": row, "labels": row} for row in tokens(count, seed)]


def trainer(model, folder, steps, **options):
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        disable_tqdm=True, learning_rate=0.02, seed=1, save_strategy="steps", save_steps=2,
        eval_strategy="steps", eval_steps=2, logging_steps=2, lr_scheduler_type="constant", **options,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=rows(32, 1), eval_dataset=rows(8, 2))


def adapted():
    return dctps.adapt_(gpt2(), 0.05, modules_to_save=["ln_f"])


def test_the_trainer_saves_goes_on_and_loads_the_best(tmp_path):
    base = {key: tensor.clone() for key, tensor in gpt2().state_dict().items()}
    with quiet():
        whole = adapted()
        trainer(whole, tmp_path / "whole", 6).train()
        trainer(adapted(), tmp_path / "part", 4).train()
        resumed = adapted()
        trainer(resumed, tmp_path / "part", 6).train(
            resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4")
        )
        state = whole.state_dict()
        for key, tensor in resumed.state_dict().items():
            assert torch.equal(tensor, state[key]), key

        best = adapted()
        loop = trainer(
            best, tmp_path / "best", 6, load_best_model_at_end=True, metric_for_best_model="eval_loss"
        )
        loop.train()
        losses = {log["step"]: log["eval_loss"] for log in loop.state.log_history if "eval_loss" in log}
        assert loop.state.best_model_checkpoint.endswith(f"-{min(losses, key=losses.get)}")
        assert loop.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    weights = {key: t for key, t in whole.state_dict().items() if key in base}
    changed = [key for key, tensor in weights.items() if not torch.equal(tensor, base[key])]
    assert changed == ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    saved = load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors")
    assert torch.equal(saved["transformer.h.0.mlp.c_fc.adapters.default.values"],
                       state["transformer.h.0.mlp.c_fc.adapters.default.values"])  # fmt: skip

    # what a checkpoint of the Trainer holds is the adapter that was trained
    with quiet():
        model = adapted()
        model.load_state_dict(saved, strict=False)
    save_adapter(model, tmp_path)
    ids = tokens()
    assert torch.equal(load_adapter_(gpt2(), tmp_path)(ids).logits, whole.eval()(ids).logits)
    assert (tmp_path / "adapter.safetensors").stat().st_size < 5000


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")

    def train(model, accelerator=None):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.02)
        if accelerator:
            model, optimizer = accelerator.prepare(model, optimizer)
        for seed in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images(seed)), LABELS)
            (accelerator.backward if accelerator else torch.Tensor.backward)(loss)
            optimizer.step()
        return model

    def fresh():
        return dctps.adapt_(small(), 0.05, modules_to_save=["6"]).train()

    try:
        accelerator = accelerate.Accelerator(cpu=True)
        model = train(fresh(), accelerator)
        accelerator.save_state(tmp_path / "state")
        state = {key: t.clone() for key, t in accelerator.unwrap_model(model).state_dict().items()}
        expected = train(fresh()).state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)
        accelerator.load_state(tmp_path / "state")
        assert all(
            torch.equal(t, state[key]) for key, t in accelerator.unwrap_model(model).state_dict().items()
        )
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_lightning(tmp_path):
    with quiet():
        lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = dctps.adapt_(small(), 0.05, modules_to_save=["6"])

        def configure_optimizers(self):
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 0.02)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def fit(steps, resume=None):
        module = Module()
        keep = lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1
        )
        loop = lightning.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, callbacks=[] if resume else [keep],
            enable_checkpointing=not resume, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        loop.fit(module, DataLoader(TensorDataset(images(), LABELS), 2), ckpt_path=resume)
        return module

    with quiet():
        whole = fit(6)
        resumed = fit(6, str(tmp_path / "step=3.ckpt"))
        loaded = Module.load_from_checkpoint(tmp_path / "step=6.ckpt", weights_only=False)
    state = whole.state_dict()
    assert not torch.equal(state["network.6.weight"], small()[6].weight)
    assert torch.equal(state["network.4.weight"], small()[4].weight)
    for other in (loaded, resumed):
        for key, tensor in other.state_dict().items():
            assert torch.equal(tensor, state[key]), key
