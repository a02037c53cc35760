"""Options of criteria and dynamics in runs: checked, named, passed on, and kept when a run goes on."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.support.faults import TINY, outcome, stop_after, tiny_dataset, tiny_network

import dctps
from dctps import cli, criteria
from dctps.experiments import RunConfig
from dctps.experiments.config import from_dict, resolve, run_name, to_dict
from dctps.experiments.parts import ScoringBatches
from dctps.experiments.run import run
from dctps.experiments.session import Session
from dctps.nn import DpSLayer
from dctps.sweeps.grid import grid, parse_fields

SCORED = replace(TINY, density=0.3)


def layers_of(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, DpSLayer)}


def session_of(config):
    torch.manual_seed(config.seed)
    return Session(resolve(config), tiny_dataset(None, False), torch.device("cpu"))


@pytest.mark.parametrize(
    ("config", "options", "name"),
    [
        ({"method": "force"}, ("mode=eval", "steps=010"), "-modeeval-steps10"),
        ({"method": "force"}, ("steps=60", "mode=train", "loss=cross_entropy"), ""),
        ({"method": "grasp"}, ("temperature=1", "shuffle=True"), "-temperature1.0-shuffletrue"),
        ({"method": "synflow"}, ("mode=eval",), ""),
        ({"method": "rigl"}, ("regrow_dropped=false", "decay=constant"), "-decayconstant-regrowdroppedfalse"),
        ({"method": "rigl"}, ("at_least_one=false",), ""),
        ({"allocation": "synflow"}, ("rounds=5",), "-allocationsynflow-rounds5"),
        # One of the two has another usual mode.
        (
            {"method": "snip", "allocation": "synflow"},
            ("mode=eval",),
            "-allocationsynflow-modeeval",
        ),
    ],
)
def test_options_are_in_the_name_where_they_are_not_usual(config, options, name):
    config = RunConfig(**config, options=options)
    assert run_name(config) == f"lenet5-digits-{config.method}-0.01-seed0{name}"
    resolved = resolve(config)
    assert resolve(resolved) == resolved
    assert from_dict(to_dict(resolved)) == resolved


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, ("steps=5",), "option steps belongs to force, iter-snip, and the run has epl, random"),
        ({"method": "dense"}, ("steps=5",), "the run has none of them"),
        ({"method": "imp", "levels": 2}, ("shuffle=true",), "the run has imp: leave it out"),
        ({"method": "force"}, ("step=5",), "unknown option 'step': did you mean 'steps'"),
        ({"method": "force"}, ("steps",), "sets nothing: write name=value"),
        ({"method": "force"}, ("steps=0",), "steps must be at least 1, got '0'"),
        ({"method": "force"}, ("steps=many",), "steps must be at least 1, got 'many'"),
        ({"method": "force"}, ("steps=3", "steps=4"), "given twice"),
        ({"method": "snip"}, ("loss=mse",), "loss must be cross_entropy or nll_on_logits, got 'mse'"),
        ({"method": "grasp"}, ("temperature=nan",), "temperature must be above 0"),
        ({"method": "rigl"}, ("regrow_dropped=maybe",), "must be true or false"),
        ({"method": "set"}, ("regrow_dropped=false",), "belongs to rigl"),
    ],
)
def test_options_that_cannot_be(config, options, message):
    with pytest.raises(ValueError, match=message):
        resolve(RunConfig(**config, options=options))


@pytest.mark.parametrize(
    ("method", "options", "criterion", "choices"),
    [
        ("snip", ("mode=eval",), partial(criteria.snip, mode="eval"), {}),
        ("snip", ("images_per_class=3",), "snip", {"per_class": 3}),
        ("grasp", ("temperature=0.1",), partial(criteria.grasp, temperature=0.1), {}),
        ("force", ("steps=4",), partial(criteria.force, steps=4), {}),
        (
            "force", ("steps=3", "loss=nll_on_logits"),
            partial(criteria.force, steps=3), {"loss": criteria.nll_on_logits},
        ),
        ("iter-snip", ("steps=3", "mode=eval"), partial(criteria.iter_snip, steps=3, mode="eval"), {}),
        ("synflow", ("rounds=2", "mode=train"), partial(criteria.synflow, rounds=2, mode="train"), {}),
    ],
)  # fmt: skip
def test_a_criterion_gets_its_options(method, options, criterion, choices):
    config = resolve(replace(SCORED, method=method, options=options))
    found = session_of(config)
    torch.manual_seed(config.seed)
    model = tiny_network(3, 1, 8)
    batches = ScoringBatches(
        found.parts.train, config.seed, (0.5,), (0.25,), per_class=choices.pop("per_class", 10)
    )
    expected = dctps.sparsify_(model, 0.3, offset="zero", criterion=criterion, batches=batches, **choices)
    usual = session_of(replace(config, options=()))
    differs = 0
    for name, layer in layers_of(expected).items():
        assert torch.equal(found.model.get_submodule(name).support, layer.support)
        differs += not torch.equal(usual.model.get_submodule(name).support, layer.support)
    assert differs


def test_an_allocation_gets_its_options():
    config = replace(SCORED, method="dctps", allocation="force", options=("steps=2", "mode=eval"))
    found = layers_of(session_of(config).model)
    chosen = layers_of(session_of(replace(config, method="force", allocation=None)).model)
    assert [layer.nnz for layer in found.values()] == [layer.nnz for layer in chosen.values()]
    assert any(not torch.equal(found[name].support, chosen[name].support) for name in found)


@pytest.mark.parametrize("offset", ["zero", "dct"])
def test_shuffled_supports(offset):
    config = replace(SCORED, method="snip", offset=offset)
    plain = session_of(config).model
    shuffled = session_of(replace(config, options=("shuffle=true",))).model
    torch.manual_seed(config.seed)
    dense = tiny_network(3, 1, 8)
    expected = dctps.shuffle_(copy.deepcopy(plain), dense, seed=config.seed)
    for name, layer in layers_of(shuffled).items():
        assert layer.nnz == plain.get_submodule(name).nnz
        assert not torch.equal(layer.support, plain.get_submodule(name).support)
        assert torch.equal(layer.support, expected.get_submodule(name).support)
        at_support = dense.get_submodule(name).weight.flatten()[layer.support]
        assert torch.equal(layer.values, at_support if offset == "zero" else torch.zeros_like(at_support))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rigl", {"decay": "constant", "at_least_one": True, "regrow_dropped": False}),
        ("set", {"decay": "constant", "at_least_one": True, "drop": "signed"}),
        ("dsr", {"threshold": 0.25}),
    ],
)
def test_dynamics_get_their_options(method, options):
    given = tuple(f"{name}={str(value).lower()}" for name, value in options.items())
    dynamics = session_of(replace(TINY, method=method, options=given)).trainer.dynamics
    usual = session_of(replace(TINY, method=method)).trainer.dynamics
    for name, value in options.items():
        assert getattr(dynamics, name) == value != getattr(usual, name)


@pytest.mark.parametrize(
    "config",
    [
        replace(SCORED, method="snip", options=("shuffle=true", "images_per_class=4")),
        replace(
            SCORED, method="rigl", criterion="force", allocation="global", update_interval=1,
            options=("steps=3", "regrow_dropped=false", "at_least_one=true"),
        ),
    ],
)  # fmt: skip
def test_a_stopped_run_ends_like_an_uninterrupted_one(tmp_path, config):
    run(config, out=tmp_path / "whole", threads=1)
    stop_after(4, tmp_path / "run", config=config)
    run(config, out=tmp_path / "run", threads=1)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    with pytest.raises(ValueError, match="options"):
        run(replace(config, options=()), out=tmp_path / "run", threads=1)


def test_options_on_the_command_line(capsys):
    assert cli.main(["report", "--method", "magnitude", "--options", "shuffle=true"]) == 0
    assert "trainable" in capsys.readouterr().out
    assert cli.main(["report", "--method", "magnitude", "--options", "shuffle=true", "steps=3"]) == 2
    assert "the option steps belongs to force, iter-snip" in capsys.readouterr().err


def test_options_in_a_grid():
    fields = parse_fields(["method=force", "options=steps=5,loss=nll_on_logits"])
    (config,) = grid(fields).values()
    assert config.options == ("loss=nll_on_logits", "steps=5")
    (config,) = grid(parse_fields(["method=force", "options=steps=5"])).values()
    assert config.options == ("steps=5",)
    assert len(grid({"method": "force", "options": [["steps=5"], ["steps=7", "mode=eval"], []]})) == 3
