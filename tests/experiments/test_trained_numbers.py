"""What a run says that it trains is what its optimizer holds."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from dctps.analysis.runs import read_run
from dctps.cli import main
from dctps.experiments import RunConfig
from dctps.experiments.config import from_dict, run_name, to_dict
from dctps.experiments.run import evaluate_run, run
from dctps.sweeps.grid import grid

CHOICES = {
    "dctps": {"density": 0.02},
    "density 0": {"density": 0},
    "density 0 without alpha": {"method": "sdctps", "density": 0, "alpha_trainable": False},
    "fan-in": {"method": "random-epl", "density": 0.02, "init": "fan-in"},
    "scored, fan-in": {"method": "synflow", "density": 0.1, "init": "fan-in", "options": "rounds=2"},
    "rigl": {"method": "rigl", "density": 0.05, "update_interval": 3},
    "dsr": {"method": "dsr", "density": 0.05, "update_interval": 3, "init": "fan-in"},
    "hyperplane": {"method": "hyperplane", "density": 0.001},
    "imp": {"method": "imp", "density": 0.5, "levels": 1},
    "dense": {"method": "dense"},
    "norms": {"method": "norms", "model": "resnet20"},
    "shared norms": {"method": "norms", "model": "resnet20", "norm": "shared"},
    "fixup": {"model": "fixup-resnet20", "density": 0.001},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_trained_number_is_counted(tmp_path, choice):
    fields = {"density": None} if CHOICES[choice].get("method") in ("dense", "norms") else {}
    config = RunConfig(epochs=1, train_images=64, eval_images=32, **fields | CHOICES[choice])
    held = []

    def count(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        held.append(sum(p.numel() for p in parameters))
        assert all(p.grad is not None or p.numel() == 0 for p in parameters)

    hook = register_optimizer_step_post_hook(count)
    try:
        summary = run(config, out=tmp_path / "run", threads=1)
    finally:
        hook.remove()
    found = read_run(tmp_path / "run")
    assert found.numbers_trained == held[-1] == sum(summary["report"]["trainable"].values())
    if "norms" in choice:
        assert found.numbers_trained == summary["report"]["trainable"]["norm"] > found.weights_trained == 0
    if "density 0" in choice:
        assert found.weights_trained == summary["report"]["nnz"] == 0
    assert evaluate_run(tmp_path / "run", threads=1)["last"].accuracy == summary["last_test_accuracy"]


def test_norms_alone_leave_the_network_as_it_was_drawn(tmp_path):
    dense = {"method": "dense", "density": None, "model": "resnet20", "epochs": 1, "train_images": 64}
    weights = {}
    for method, lr in (("norms", 0.1), ("dense", 1e-12)):
        path = tmp_path / method
        run(RunConfig(**dense | {"method": method, "lr": lr, "weight_decay": 0.0}), out=path, threads=1)
        weights[method] = load_file(path / "model.safetensors")
    for name, weight in weights["norms"].items():
        if weight.dim() > 1 or name.startswith("classifier"):
            assert torch.allclose(weight, weights["dense"][name], atol=1e-9), name


def test_density_0_of_a_network_of_which_nothing_trains_says_so(tmp_path, capfd):
    flags = ["--density", "0", "--no-alpha-trainable", "--no-bias", "--epochs", "1"]
    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 2
    assert "no trainable parameter" in capfd.readouterr().err
    assert main(["train", "--method", "norms", "--out", str(tmp_path / "run")]) == 2
    assert "LeNet5 has no normalisation layer with scale or shift: choose a network" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["report", "--density", "0", "--method", "sdctps"]) == 0
    assert "0 of 61,470 weights train (density 0.0000%)" in capfd.readouterr().out
    assert main(["report", "--density", "0", "--method", "set"]) == 2
    assert "density 0 trains no weight, and without an offset" in capfd.readouterr().err


def test_init_is_swept_named_and_new(tmp_path):
    runs = grid({"method": ["snip", "rigl"], "init": ["dense", "fan-in"], "density": 0.1})
    assert list(runs) == [
        f"lenet5-digits-{m}-0.1-seed0{init}" for m in ("snip", "rigl") for init in ("", "-initfan-in")
    ]
    old = {name: value for name, value in to_dict(RunConfig(method="snip")).items() if name != "init"}
    assert from_dict(old) == RunConfig(method="snip") != RunConfig(method="snip", init="fan-in")
    # A name too long for a folder ends with a digest of the fields, as it did before there was `init`.
    fields = {"dataset": "digits", "options": [["images_per_class=13", "loss=nll_on_logits"]]}
    fields |= {"milestones": [[0.111111111, 0.222222222, 0.33333333, 0.44444444, 0.555555555, 0.66666666]]}
    fields |= {"schedule": "multistep", "method": "snip", "lr": 0.123456789, "weight_decay": 0.000123456}
    (name,) = grid(fields)
    assert name.endswith("_0.66666666-6f02b1dbd192301b")
    (other,) = grid(fields | {"init": "fan-in"})
    assert other != name and len(other) <= 180
    assert run_name(RunConfig(method="snip", init="fan-in")).endswith("-initfan-in")
    assert run_name(RunConfig(density=0)) == run_name(RunConfig(density=0.0)) == "lenet5-digits-dctps-0-seed0"
    assert json.loads(json.dumps(to_dict(RunConfig())))["init"] == "dense"
