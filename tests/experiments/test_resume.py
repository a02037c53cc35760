"""Runs that go on: from the middle of an epoch, in another place, for every optimizer and schedule."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from tests.support.faults import TINY, outcome, send_after, stop_after, train_tiny

from dctps.experiments.folder import RunFolderError
from dctps.experiments.run import evaluate_run, run
from dctps.experiments.signals import Stopped, sigterm_raises
from dctps.experiments.state import read_state, write_state

CONFIGS = [
    TINY,
    replace(TINY, optimizer="sgd", lr=0.05, schedule="multistep", milestones=(0.3, 0.6), clip_norm=1.0),
    replace(TINY, optimizer="sgd", lr=0.05, momentum=0.0, schedule="constant", validation_size=0.0),
    replace(TINY, optimizer="adamw", method="dense", density=None, amp="bf16"),
    replace(TINY, model="resnet20", method="dense", density=None),  # filters of several channels
    replace(TINY, mixup=0.7),
    replace(TINY, method="random-erk", amp="fp16", decay_alpha=False, decay_norm_bias=False),
    replace(TINY, method="dctps-rigl", update_interval=2, dynamics_end=1.0),
    replace(TINY, method="rigl", update_interval=1, dynamics_end=1.0, amp="fp16", optimizer="sgd", lr=0.05),
    replace(TINY, method="set", update_interval=2, dynamics_end=1.0, optimizer="adamw", schedule="cosine"),
    replace(TINY, method="dsr", update_interval=1, dynamics_end=1.0, drop_fraction=0.5),
]
NAMES = [f"{c.model}-{c.method}-{c.optimizer}-{c.schedule}-{c.amp}" for c in CONFIGS]


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_stopped_run_ends_like_an_uninterrupted_one(tmp_path, config, steps):
    run(config, out=tmp_path / "whole", threads=1)
    stop_after(steps, tmp_path / "run", config=config)
    torch.rand(3)
    notes = []
    run(config, out=tmp_path / "run", threads=1, on_note=notes.append)
    assert len(notes) == 1
    assert f"continues in epoch {1 + (steps - 1) // 3} of 2, after step" in notes[0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_stopped_at_every_step(tmp_path):
    train_tiny(tmp_path / "whole")
    for _ in range(6):
        stop_after(1, tmp_path / "run")
    train_tiny(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_says_where_and_puts_the_handlers_back(tmp_path, number, status):
    before = signal.getsignal(number)
    stopped = stop_after(2, tmp_path / "run", number)
    assert signal.getsignal(number) is before
    assert stopped.status == status
    assert str(stopped) == (
        f"stopped; {tmp_path / 'run'} is saved in epoch 1 of 2, after step 2 of 3: "
        f"the same command continues from there"
    )


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle = send_after(1, signal.SIGINT)
    try:
        train_tiny(tmp_path / "run")
    finally:
        handle.remove()
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "run" / "summary.json").exists()


def test_another_number_of_threads_is_said_and_kept(tmp_path):
    stop_after(2, tmp_path / "run")
    notes = []
    summary = run(TINY, out=tmp_path / "run", threads=2, on_note=notes.append)
    assert "threads 1 before and 2 now" in notes[1]
    assert len(notes) == 2
    assert summary["threads"] == 2
    assert [place["threads"] for place in summary["earlier_environments"]] == [1]


def test_an_interval_below_one(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_interval must be at least 1"):
        run(TINY, out=tmp_path / "run", checkpoint_interval=0)


def test_the_deletion_of_the_state_is_made_up_for(tmp_path):
    train_tiny(tmp_path / "run")
    (tmp_path / "run" / "state.safetensors").write_text("left over")
    train_tiny(tmp_path / "run", on_epoch=pytest.fail)
    assert not (tmp_path / "run" / "state.safetensors").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("model"),
        lambda s: s["model"].popitem(),
        lambda s: s.update(rates=[0.1, 0.1, 0.1]),
        lambda s: s["slots"]["0"].update(exp_avg=torch.zeros(())),
        lambda s: s["slots"]["0"].pop("exp_avg"),
        lambda s: s["slots"].update({"99": s["slots"]["0"]}),
        lambda s: s["slots"].update(zero=s["slots"]["0"]),
        lambda s: s.update(generator=torch.zeros(3)),
        lambda s: s.update(torch_rng="none"),
        lambda s: s.update(schedule=[]),
        lambda s: s["epoch"]["tally"].update(steps=4),
        lambda s: s["epoch"]["tally"].update(loss="low"),
        lambda s: s.update(records=[{"epoch": 2}]),
        lambda s: s["records"][0].pop("test_accuracy"),
        lambda s: s.update(records=s["records"] + [s["records"][0] | {"epoch": 2}]),
        lambda s: s.update(best=None),
        lambda s: s["best"].popitem(),
    ],
)
def test_a_state_that_does_not_fit(tmp_path, change):
    refuses(tmp_path, TINY, change)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(dynamics=None),
        lambda s: s["dynamics"].pop("threshold"),
        lambda s: s["dynamics"].update(threshold=-1.0),
        lambda s: s["dynamics"].update(steps="3"),
        lambda s: s["model"].update({"0.values": torch.zeros(2, 2)}),
        lambda s: s["model"].update({"0.values": torch.zeros(10_000)}),
        lambda s: s["model"].update({"0.values": s["model"]["0.values"][1:]}),
        lambda s: s["best"].update({"0.support": s["best"]["0.support"].flip(0)}),
    ],
)
def test_a_state_of_changing_supports_that_does_not_fit(tmp_path, change):
    config = replace(TINY, method="dsr", update_interval=1, dynamics_end=1.0, drop_fraction=0.5)
    refuses(tmp_path, config, change)


def test_the_best_network_has_the_supports_of_its_epoch(tmp_path):
    for method in ("rigl", "dsr"):
        config = replace(
            TINY, method=method, update_interval=1, dynamics_end=1.0, drop_fraction=0.5, epochs=4
        )
        networks = []

        def keep(record, folder=tmp_path / method, networks=networks):
            networks.append((folder / "model.safetensors").read_bytes())

        summary = run(config, out=tmp_path / method, threads=1, on_epoch=keep)
        best = (tmp_path / method / "best.safetensors").read_bytes()
        assert best == networks[summary["best_epoch"] - 1]
        assert len(set(networks)) == 4
        again = evaluate_run(tmp_path / method, threads=1)
        assert again["last"].accuracy == summary["last_test_accuracy"]
        assert again["best"].accuracy == summary["best_test_accuracy"]
        assert summary["report"]["nnz"] == round(0.2 * summary["report"]["weights"])


def refuses(tmp_path, config, change):
    stop_after(5, tmp_path / "run", config=config)
    path = tmp_path / "run" / "state.safetensors"
    state = read_state(path)
    change(state["session"])
    write_state(path, state)
    before = path.read_bytes()
    with pytest.raises(RunFolderError, match=r"state\.safetensors cannot be used") as info:
        train_tiny(tmp_path / "run", config)
    assert "\n" not in str(info.value)
    assert path.read_bytes() == before


def test_a_signal_whose_exception_was_dropped_is_not_lost(tmp_path, monkeypatch):
    """The interpreter drops what is raised in a finaliser, and in some callbacks of imports."""

    class Finaliser:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    dropped = []
    monkeypatch.setattr("sys.unraisablehook", lambda report: dropped.append(report.exc_type))
    with sigterm_raises("stopped"):
        thing = Finaliser()
        del thing
        assert dropped == [Stopped]
        with pytest.raises(Stopped):
            run(TINY, out=tmp_path, threads=1)
    assert not (tmp_path / "metrics.jsonl").exists()
    run(TINY, out=tmp_path, threads=1)
