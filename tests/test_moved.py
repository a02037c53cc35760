"""Scripts that were written for the old places of modules still find what they import."""

import subprocess
import sys

import pytest

import dctps.identity.identified
import dctps.initial
import dctps.networks
import dctps.stacks
import dctps.sweeps.events
import dctps.sweeps.grid
import dctps.sweeps.sweep
import dctps.sweeps.workers

OLD = [
    ("dctps.experiments.cluster", "on_ray", dctps.stacks),
    ("dctps.experiments.grid", "grid", dctps.sweeps.grid),
    ("dctps.experiments.stacking", "stacked", dctps.stacks),
    ("dctps.experiments.sweep", "run_sweep", dctps.sweeps.sweep),
    ("dctps.experiments.workers", "execute", dctps.sweeps.workers),
    ("dctps.experiments.workers", "Finished", dctps.sweeps.events),
    ("dctps.nn", "merge_", dctps.networks),
    ("dctps.nn.identified", "_Seen", dctps.identity.identified),
    ("dctps.nn.initial", "Law", dctps.initial),
    ("dctps.nn.surgery", "merge_", dctps.networks),
    ("dctps.training", "Stack", dctps.stacks),
]


@pytest.mark.parametrize(("module", "name", "now"), OLD)
def test_old_imports_give_what_is_there_now(module, name, now):
    scope = {}
    exec(f"from {module} import {name}", scope)
    assert scope[name] is getattr(now, name)


def test_what_never_was_there_is_still_an_error():
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from dctps.experiments.grid import nothing", {})
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from dctps.training import nothing", {})


def test_old_names_cost_nothing_until_they_are_used():
    program = "import sys, dctps.experiments.sweep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
