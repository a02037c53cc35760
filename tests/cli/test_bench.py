import json
import subprocess
import sys

import pytest

from dctps.benchmarking.record import add_run
from dctps.benchmarking.timing import ROUNDS, measure
from dctps.cli import main

QUICK = ["--seconds", "0", "--threads", "1", "--densities", "0.1"]


def bench(tmp_path, *flags):
    """The one run that a command writes."""
    path = tmp_path / "results" / "bench.json"
    assert main(["bench", *flags, "--json", str(path)]) == 0
    return json.loads(path.read_text())["runs"][-1]


def test_a_linear_run_says_what_was_measured_and_where(tmp_path, capfd):
    run = bench(tmp_path, "linear", "--sizes", "8", "12", "--batch", "4", *QUICK, "--offsets", "dct", "zero")
    assert [(cell["n"], cell["batch"], cell["density"]) for cell in run["cells"]] == [
        (8, 4, 0.1),
        (12, 4, 0.1),
    ]
    for cell in run["cells"]:
        assert list(cell["candidates"])[:3] == ["nn.Linear", "dct", "zero"]
        for times in cell["candidates"].values():
            assert 0 < times["p10_ms"] <= times["median_ms"]
            assert times["rounds"] == ROUNDS
    assert run["threads"] == 1
    assert run["versions"]["torch"]
    assert run["command"].startswith("dctps bench linear --sizes 8 12")
    assert run["hardware"]
    out = capfd.readouterr().out
    assert "n 12, density 0.1, batch 4" in out
    assert "1.00x" in out


def test_nonzeros_in_a_row_fix_the_density(tmp_path):
    run = bench(tmp_path, "linear", "--sizes", "8", "16", "--nnz-per-row", "2", *QUICK[:4], "--batch", "2")
    assert [cell["density"] for cell in run["cells"]] == [1 / 4, 1 / 8]


def test_other_parts_run(tmp_path):
    lenet = ("--models", "lenet5", "--batch", "2", *QUICK)
    found = {part: bench(tmp_path, part, *lenet)["cells"] for part in ("network", "latency")}
    assert [cell["what"] for cell in found["network"]] == ["training step", "forward pass"]
    assert [cell["batch"] for cell in found["latency"]] == [1]
    for cells in found.values():
        assert all(list(cell["candidates"]) == ["dense", "dct", "sdct"] for cell in cells)
    (cell,) = bench(tmp_path, "transform", "--sizes", "30", "--batch", "4", *QUICK[:4])["cells"]
    assert {"torch.fft.rfft", "copy", "scipy"} <= set(cell["candidates"])
    commands = [
        run["command"] for run in json.loads((tmp_path / "results" / "bench.json").read_text())["runs"]
    ]
    assert len(commands) == 3  # other commands' runs are kept


def test_layers_of_a_network_are_each_other_shape_once(tmp_path):
    # at batch 512 LeNet-5's convolutions take over a millisecond anywhere
    cells = bench(tmp_path, "layers", "--models", "lenet5", "--batch", "512", *QUICK)["cells"]
    layers = {cell["layer"]: cell for cell in cells}
    assert layers["features.0"]["weight"] == [6, 3, 5, 5]
    assert layers["features.0"]["first"]
    assert layers["features.3"]["input"] == [512, 6, 14, 14]
    assert not layers["features.3"]["first"]
    assert list(layers["features.3"]["candidates"]) == ["dense", "dct 0.1", "sdct 0.1"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_counts_what_is_above_the_activations(tmp_path):
    cells = bench(
        tmp_path, "memory", "--models", "lenet5", "--batch", "2", "--offsets", "dct", "--threads", "1"
    )
    dense, dct = cells["cells"]
    assert dense["dense_state"] == dct["dense_state"] == 16 * 62_006
    # conv1's and conv2's outputs after ReLU and after pooling are saved, and each linear layer's input
    assert dense["activations"] >= 4 * 2 * (6 * 28**2 + 6 * 14**2 + 16 * 10**2 + 400 + 120 + 84)
    assert dense["peak_above_activations"] > dense["dense_state"] / 2
    assert dct["share"] == dct["peak_above_activations"] / dct["dense_state"]


def test_a_command_that_is_given_again_replaces_its_run(tmp_path):
    path = tmp_path / "bench.json"
    for command, cells in (("a", 1), ("b", 2), ("a", 3)):
        add_run(path, {"command": command, "cells": cells})
    assert json.loads(path.read_text())["runs"] == [
        {"command": "b", "cells": 2},
        {"command": "a", "cells": 3},
    ]


def test_candidates_take_turns_each_with_a_call_that_is_not_timed():
    calls = []
    measure({name: lambda name=name: calls.append(name) for name in "ab"}, 0.0)
    assert calls == ["a", "a", "b", "b"] * ROUNDS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("linear --sizes 0", "sizes must be above 0, got (0,)"),
        ("linear --densities 2 --sizes 4 --seconds 0", "density must be in [0, 1], got 2.0"),
        ("linear --offsets dtc --sizes 4 --seconds 0", "did you mean 'dct'"),
        ("linear --nnz-per-row 0", "nnz_per_row must be at least 1, got 0"),
        ("network --models vgg18", "did you mean"),
        ("network --batch 0", "batch must be at least 1, got 0"),
        ("transform --threads 0", "threads must be from 1 to 1024, got 0"),
    ],
)
def test_mistakes_end_with_one_line(capfd, flags, message):
    assert main(["bench", *flags.split()]) == 2
    err = capfd.readouterr().err
    assert err.startswith("dctps: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_file_of_something_else_is_not_overwritten(tmp_path, capfd):
    path = tmp_path / "config.json"
    path.write_text("{}")
    flags = ["transform", "--sizes", "8", "--batch", "1", "--seconds", "0", "--json", str(path)]
    assert main(["bench", *flags]) == 2
    assert "holds no results of dctps bench" in capfd.readouterr().err
    assert path.read_text() == "{}"


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom dctps.cli import main\n"
        "try:\n    main(['bench', '--help'])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
