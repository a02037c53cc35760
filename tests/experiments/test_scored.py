"""Runs whose weights a criterion chooses: scored once, on their own training images."""

from dataclasses import replace

import pytest
import torch
from tests.support.faults import TINY, outcome, stop_after

import dctps
from dctps import cli
from dctps.data import load_dataset, split_validation
from dctps.experiments import RunConfig
from dctps.experiments.network import describe
from dctps.experiments.parts import ScoringBatches
from dctps.experiments.run import describe_run, evaluate_run, run
from dctps.models import build_model
from dctps.selection import weights

SNIP = replace(TINY, method="snip", density=0.4)
DIGITS = RunConfig(method="snip", density=0.05, epochs=1, batch_size=256)


def batches_of(config, per_class=10):
    digits = load_dataset("digits")
    train, _ = split_validation(digits.train, round(config.validation_size * len(digits.train)), 0)
    return train, ScoringBatches(train, config.seed, digits.mean, digits.std, per_class=per_class)


def test_each_pass_has_other_images_and_as_many_of_each_class():
    train, batches = batches_of(DIGITS, per_class=20)
    _, again = batches_of(DIGITS, per_class=20)
    passes = [[*batches], [*batches]]
    for found in passes:
        assert [len(labels) for _, labels in found] == [100, 100]
        labels = torch.cat([labels for _, labels in found])
        assert labels.bincount().tolist() == [20] * 10
    assert not torch.equal(passes[0][0][0], passes[1][0][0])
    assert torch.equal(passes[0][1][0], [*again][1][0])
    few = train.select(torch.cat([torch.arange(40), (train.labels == 3).nonzero().squeeze(1)[:1]]))
    (batch,) = ScoringBatches(few, 0, (0.0,), (1.0,), per_class=1000)
    assert len(batch[1]) == 41


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "magnitude"])
def test_a_run_trains_what_the_criterion_chooses(tmp_path, method):
    config = replace(DIGITS, method=method)
    summary = run(config, out=tmp_path / "run", threads=1)
    assert summary["report"]["nnz"] == round(0.05 * summary["report"]["weights"])
    torch.manual_seed(config.seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = dctps.sparsify_(
        build_model(config.model, 10, 1),
        0.05,
        offset="zero",
        criterion=method,
        batches=batches_of(config)[1],
        seed=config.seed,
    )
    torch.set_num_threads(before)
    rows = {row["name"]: row["nnz"] for row in summary["report"]["rows"]}
    assert rows == {row.name: row.nnz for row in dctps.report(expected).rows}
    assert describe_run(tmp_path / "run").rows == dctps.report(expected).rows


@pytest.mark.parametrize("config", [SNIP, replace(TINY, allocation="synflow")])
def test_resumed_and_evaluated_runs_do_not_choose_again(tmp_path, monkeypatch, config):
    whole = run(config, out=tmp_path / "whole", threads=1)
    stop_after(2, tmp_path / "run", config=config)

    def chosen_already(*_, **__):
        raise AssertionError

    monkeypatch.setattr(weights, "choose", chosen_already)
    run(config, out=tmp_path / "run", threads=1)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert evaluate_run(tmp_path / "run", threads=1)["last"].accuracy == whole["last_test_accuracy"]
    assert evaluate_run(tmp_path / "run", threads=1)["best"].accuracy == whole["best_test_accuracy"]


def test_what_only_data_decide_is_not_described(tmp_path, capsys):
    with pytest.raises(ValueError, match="criterion 'snip' and allocation 'global' the data decide"):
        describe(DIGITS)
    assert describe(replace(DIGITS, method="magnitude")).nnz == round(0.05 * 61_470)
    assert cli.main(["report", "--method", "force"]) == 2
    assert "give the run's folder" in capsys.readouterr().err


def test_an_offset_criterion_by_flags(tmp_path):
    config = replace(DIGITS, method="dctps", criterion="offset-gradient", allocation="epl")
    report = run(config, out=tmp_path / "run", threads=1)["report"]
    assert sum(row["nnz"] for row in report["rows"]) == round(0.05 * report["weights"])
    assert {row["offset"] for row in report["rows"]} == {"dct"}
    assert cli.main(["report", str(tmp_path / "run")]) == 0
