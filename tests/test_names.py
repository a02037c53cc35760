"""Names: submodules after `import dctps`, extensions that are defined again, and offsets without a name."""

import importlib
import pkgutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import dctps
from dctps.data.registry import DATASETS, DESCRIPTIONS, register_dataset
from dctps.data.tensors import Description
from dctps.dynamic import find_dynamics, list_dynamics
from dctps.dynamic.base import DYNAMICS
from dctps.models.registry import MODELS, register_model
from dctps.networks.conversion import CONVERSIONS
from dctps.offsets.registry import OFFSETS
from dctps.selection.allocation import ALLOCATIONS
from dctps.selection.criteria.registry import CRITERIA
from dctps.subspace.projection import PROJECTIONS, register_projection

FOLDERS = sorted({m.name for m in pkgutil.iter_modules(dctps.__path__) if m.ispkg} - {"cli"})


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_folders_are_there_after_the_import():
    names = ["models", "dynamic", "checkpoint", "data", "training", "experiments"]
    shown = ", ".join(f"dctps.{name}.__name__" for name in names)
    assert python(f"import dctps; print({shown})") == [f"dctps.{name}" for name in names]


def test_no_folder_is_missing_and_none_is_loaded_before_it_is_used():
    assert "models" in FOLDERS
    for name in (*FOLDERS, "counter", "reporting", "testing"):
        assert getattr(dctps, name) is importlib.import_module(f"dctps.{name}")
        assert name in dir(dctps)
    loaded = python("import dctps, sys; dir(dctps); print(*sys.modules)")
    assert not {"torch", "numpy", *(f"dctps.{name}" for name in FOLDERS)} & set(loaded)
    assert dctps.report.__module__ == "dctps.reporting"
    with pytest.raises(AttributeError, match="module 'dctps' has no attribute 'modles'"):
        _ = dctps.modles


def function():
    def own(*_):
        return None

    return own


def offset():
    class Own(dctps.Offset):
        def to_dense(self, *, dtype=torch.float32, device="cpu"):
            return torch.ones(self.shape, dtype=dtype, device=device)

    return Own


def projection():
    class Own(dctps.subspace.Projection):
        pass

    return Own


def dynamics():
    class Own(dctps.dynamic.SET):
        pass

    return Own


class Layer(nn.Linear):
    pass


REGISTRIES = {
    "offset": (OFFSETS, dctps.register_offset, offset),
    "allocation": (ALLOCATIONS, dctps.register_allocation, function),
    "criterion": (CRITERIA, dctps.register_criterion, function),
    "dynamics": (DYNAMICS, dctps.register_dynamics, dynamics),
    "projection": (PROJECTIONS, register_projection, projection),
    "model": (MODELS, register_model, function),
    "data set": (DATASETS, register_dataset, function),
    "conversion": (CONVERSIONS, lambda name: dctps.register_conversion(Layer), function),
}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_cell_that_is_run_again_replaces_what_it_defined(kind):
    registry, register, define = REGISTRIES[kind]
    before = dict(registry)
    try:
        first, second = define(), define()
        assert register("own")(first) is first
        with pytest.warns(UserWarning, match=f"Own|own.* is defined again: the {kind} name") as said:
            assert register("own")(second) is second
        assert len(said) == 1
        (name,) = registry.keys() - before.keys()
        entry = registry[name]
        assert second in (entry, getattr(entry, "expand", None))

        def other(*_):
            return None

        with pytest.raises(
            ValueError, match=f"the {kind} name .* already taken by .*[oO]wn: register .*other"
        ):
            register("own")(other)
        assert registry[name] is entry
    finally:
        for name in registry.keys() - before.keys():
            del registry[name]


def test_names_of_the_library_are_not_replaced():
    for kind, (registry, register, define) in REGISTRIES.items():
        if kind != "conversion":
            name = next(iter(registry))
            with pytest.raises(ValueError, match="already taken by .*dctps"):
                register(name)(define())
    for name in ("random", "nonzero"):
        with pytest.raises(ValueError, match="already taken by a built-in one"):
            dctps.register_criterion(name)(function())


def test_a_data_set_that_is_defined_again_takes_its_description_along():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            register_dataset("own", Description(3, 1, 8))(function())
            register_dataset("own")(function())
            assert "own" not in DESCRIPTIONS
        finally:
            del DATASETS["own"]


def test_dynamics_have_names():
    assert set(list_dynamics()) == {"dsr", "set", "rigl"}
    assert find_dynamics("rigl") is dctps.RigL
    with pytest.raises(ValueError, match="unknown dynamics 'rgil': did you mean 'rigl'"):
        find_dynamics("rgil")
