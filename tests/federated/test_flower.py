"""The example's Flower app in Flower's own engine: with its stock FedAvg, and with clients that fail."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import dctps
from dctps.models import build_model

RecordDict = pytest.importorskip("flwr.app").RecordDict
pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "federated"
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "src", APP)))


def simulate(config, faults, strategy, clients):
    """What the run prints."""
    command = [sys.executable, "-m", "tests.support.flower_rounds", json.dumps(config), json.dumps(faults)]
    environment = {
        **{k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "OMP_NUM_THREADS")},
        "PYTHONPATH": PATHS,
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else a busy machine leaves them nothing
    }
    done = subprocess.run(
        [*command, strategy, str(clients)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def accuracies(printed):
    return [float(a) for a in re.findall(r"MetricRecord: \{'accuracy': ([\d.]+)\}", printed)]


def test_stock_fedavg_and_the_bytes_that_flower_counts():
    printed = simulate({"num-server-rounds": 1}, {}, "stock", 2)
    assert "Starting FedAvg strategy" in printed and "Received 2 results and 0 failures" in printed
    counted = [int(n) for n in re.findall(r"(?:Incoming|Outgoing) message size: (\d+) bytes", printed)]
    assert len(counted) >= 3 and max(counted) <= 2500  # dense it is 248 kB
    assert len(accuracies(printed)) == 1


def test_a_round_goes_on_without_those_who_are_late():
    printed = simulate({"num-server-rounds": 2, "round-timeout": 10.0}, {"0": "late"}, "checked", 2)
    assert len(re.findall(r"round \d: client \d+ did not answer in time", printed)) >= 2
    assert len(accuracies(printed)) == 2


def test_clients_that_fail_are_refused_with_a_line_each():
    faults = {"0": "dies", "1": "nan", "2": "shape", "3": "key", "4": "count"}
    printed = simulate({"num-server-rounds": 1}, faults, "checked", 6)
    lines = sorted(re.findall(r"round 1: refused client \d+: (.*)", printed))
    assert lines == [
        "'numbers' has the shape (547,): this network's is (548,)",
        "'values' holds nan at 5, which no torch.float32 number can be",
        "its 'num-examples' is inf: it must be a number of 0 or more",
        "out of memory at a line of its own'>",
        "the state lacks 'alpha': it is of another network",
    ]
    assert "Received 1 results and 0 failures" in printed
    assert len(accuracies(printed)) == 1


@pytest.fixture
def task(monkeypatch):
    monkeypatch.syspath_prepend(APP)
    from rounds import task

    return task


@pytest.mark.parametrize("concentration", [0.0, 0.3, 100.0])
def test_each_image_has_one_client(task, concentration):
    labels = torch.randint(10, (2000,))
    parts = task.split(labels, 7, concentration, seed=3)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(2000)) and len(parts) == 7
    again = task.split(labels, 7, concentration, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    shares = torch.stack([torch.bincount(labels[part], minlength=10) / labels.bincount() for part in parts])
    spread = float(shares.std(0).mean())
    assert (spread > 0.1) == (concentration == 0.3), spread


def test_clients_know_the_mean_of_all_gradients_from_the_servers_move(task):
    config = {"lr": 0.02, "num-server-rounds": 10, "steps": 2}
    states, now = (
        [RecordDict() for _ in range(3)],
        torch.randn(50, generator=torch.Generator().manual_seed(0)),
    )
    gradients = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    scales = [task.scales(state, now, config, 1) for state in states]
    now = torch.stack([now - 2 * s * g for s, g in zip(scales, gradients, strict=True)]).mean(0)
    scales = [task.scales(state, now, config, 2) for state in states]
    expected = task.rate(config, 2) / (gradients.mean(0).abs() + 1e-4)
    for scale in scales:
        torch.testing.assert_close(scale, expected, rtol=1e-2, atol=0)
        assert torch.equal(scale, scales[0])


def test_the_bytes_of_the_networks_of_the_page(task):
    def count(config, model):
        return task.arrays_of(model, config).count_bytes()

    lenet, resnet = (
        dctps.sparsify_(build_model(name, 10, 3), density)
        for name, density in (("lenet5", 0.005), ("resnet20", 0.001))
    )
    assert count({"statistics": False}, lenet) <= 2400
    assert count({"statistics": True}, resnet) <= 13_000
    dense = build_model("lenet5", 10, 3)
    assert isinstance(dense, nn.Module) and count({"statistics": False}, dense) >= 248_000
