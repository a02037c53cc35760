import json
import subprocess
import sys
from dataclasses import replace

import pytest

from dctps.experiments import METHODS, RunConfig, build_recipe, list_recipes
from dctps.experiments.config import from_dict, resolve, run_name, to_dict
from dctps.experiments.recipes import recipe_text


@pytest.mark.parametrize("name", list_recipes())
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", ["cifar10", "tinyimagenet", "folder"])
def test_every_recipe_is_a_run_for_every_method(name, method, dataset):
    config = build_recipe(name, model="lenet5", dataset=dataset, method=method)
    assert (config.model, config.dataset, config.method) == ("lenet5", dataset, method)
    resolved = resolve(config)
    assert from_dict(json.loads(json.dumps(to_dict(resolved)))) == resolved
    assert resolve(resolved) == resolved


def test_without_a_recipe_it_is_the_short_one():
    assert build_recipe("short") == RunConfig()


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_optimizer_depends_on_the_method(method):
    config = build_recipe("paper", method=method)
    assert (config.model, config.dataset) == ("resnet50", "cifar100")
    assert (config.epochs, config.batch_size, config.weight_decay, config.validation_size) == (
        200,
        128,
        5e-4,
        0.1,
    )
    if METHODS[method].offset in ("dct", "sdct"):
        assert (config.optimizer, config.lr, config.schedule) == ("adam", 1e-3, "constant")
    else:
        assert (config.optimizer, config.lr, config.momentum, config.nesterov) == ("sgd", 0.1, 0.9, False)
        assert [round(share * 200) for share in config.milestones] == [119, 159]


@pytest.mark.parametrize("method", METHODS)
def test_few_gives_each_method_its_own_start(method):
    """A plain sparse network with a random support stands at chance from the dense start (docs/worth.md)."""
    config = build_recipe("few", method=method)
    begins_sparse = {"random-uniform", "random-epl", "random-epf", "random-erk", "rigl", "set", "dsr", "snip"}
    assert (config.init == "fan-in") == (method in begins_sparse)
    assert config.zero_head == method.removesuffix("-rigl").endswith("dctps")


def test_a_fixup_network_starts_at_its_own_norms():
    assert build_recipe("paper", model="fixup-resnet110").alpha == "match"
    assert build_recipe("paper").alpha == "one"
    assert build_recipe("fixup", method="dctps").alpha == "match"


@pytest.mark.parametrize(
    ("name", "dataset", "epochs", "steps", "weight_decay", "nesterov", "held_out"),
    [
        ("force", "cifar10", 350, [150, 250], 5e-4, False, 0.1),
        ("force", "tinyimagenet", 300, [150, 225], 5e-4, False, 0.1),
        ("synflow", "cifar100", 160, [60, 120], 1e-4, True, 0.0),
        ("fixup", "cifar10", 200, [100, 150], 1e-4, False, 0.0),
    ],
)
def test_published_numbers(name, dataset, epochs, steps, weight_decay, nesterov, held_out):
    config = build_recipe(name, dataset=dataset, method="dense")
    assert (config.epochs, config.weight_decay, config.nesterov) == (epochs, weight_decay, nesterov)
    assert (config.lr, config.momentum, config.batch_size, config.validation_size) == (
        0.1,
        0.9,
        128,
        held_out,
    )
    # The schedule counts steps, of which CIFAR has 352 an epoch when a tenth is held out.
    assert [round(share * epochs * 352) for share in config.milestones] == [step * 352 for step in steps]


def test_a_run_is_its_configuration_and_not_the_recipe_that_it_came_from():
    spelled = RunConfig(
        model="resnet50", dataset="cifar100", epochs=200, lr=1e-3, schedule="constant", batch_size=128
    )
    assert resolve(build_recipe("paper")) == resolve(spelled)
    assert run_name(build_recipe("paper")) == run_name(spelled)
    assert (
        run_name(build_recipe("paper"))
        == "resnet50-cifar100-dctps-0.01-seed0-epochs200-lr0.001-scheduleconstant"
    )
    changed = replace(build_recipe("paper"), epochs=100)
    assert run_name(changed) != run_name(build_recipe("paper"))


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown recipe 'papre': did you mean 'paper'"):
        build_recipe("papre")
    with pytest.raises(ValueError, match="unknown method 'dctsp'"):
        build_recipe("paper", method="dctsp")


def test_each_has_a_line_for_the_list():
    lines = {recipe_text(name)[0] for name in list_recipes()}
    assert len(lines) == len(list_recipes()) and all(line.endswith(".") for line in lines)


def test_recipes_are_listed_without_torch():
    code = (
        "import sys; from dctps.cli import main; assert main(['recipes']) == main(['recipes', 'paper']) == 0;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
