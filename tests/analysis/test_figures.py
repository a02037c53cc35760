"""Figures from small run folders: pictures that open, and numbers that are those of the runs."""

import csv
import io
import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from dctps.analysis import style as style_module
from dctps.analysis.accuracy import FAMILIES, draw_families, draw_panels
from dctps.analysis.curves import make_panels, rows_of
from dctps.analysis.figure_runs import for_all, keep_failures, read_failures, runs_of_figure
from dctps.analysis.figures import FIGURES, draw_figure
from dctps.analysis.runs import read_runs
from dctps.analysis.style import STYLES, Style, save, style, to_csv
from dctps.benchmarking.costs import measure_cost, read_cost
from dctps.benchmarking.initial import examine, read_examined
from dctps.cli import main
from dctps.experiments.config import RunConfig, resolve
from dctps.experiments.methods import METHODS
from dctps.experiments.run import run

SPARSE = [method for method in METHODS if method not in ("norms", "dense")]


def rows_in(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def configurations(methods, densities=(0.05, 0.01), seeds=(0, 1), **fields):
    return [
        resolve(RunConfig(method=m, density=d, seed=s, **fields))
        for m in methods
        for d in densities
        for s in seeds
    ]


def test_every_method_has_a_style_that_grey_can_tell():
    assert list(METHODS) and set(METHODS) == set(STYLES)
    looks = [(look.marker, str(look.line), look.filled) for look in STYLES.values()]
    assert len(set(looks)) == len(looks)
    assert set().union(*FAMILIES.values()) == set(SPARSE)
    assert style("my-own") == Style("my-own", "#000000", ".", style_module._LOOSE)


def test_figure_1_is_the_runs_and_says_what_is_missing(tmp_path, write_run):
    wanted = configurations(SPARSE) + configurations(["dense"])
    rng = np.random.default_rng(0)
    accuracy = {}
    for config in dict.fromkeys(wanted):
        if config.method == "grasp" or (config.method, config.density, config.seed) == ("force", 0.01, 1):
            continue
        accuracy[config] = rng.uniform(0.1, 0.7, size=3)
        levels = [0, 1, 1] if config.method == "imp" else None
        write_run(
            tmp_path / "runs",
            config,
            list(accuracy[config]),
            nnz=round(1e4 * (config.density or 1)),
            levels=levels,
        )
    notes = {config: "the scores are all 0" for config in wanted if config.method == "grasp"}
    files = draw_figure("1", read_runs(tmp_path / "runs"), wanted, notes, tmp_path)
    assert [file.name for file in files] == ["figure1.csv", "figure1.png", "figure1.pdf"]
    assert imread(files[1]).std() > 0.05 and files[2].read_bytes().startswith(b"%PDF")

    rows = {(row["method"], row["density"]): row for row in rows_in(files[0])}
    assert len(rows) == 2 * len(SPARSE) + 1
    both = [accuracy[c].max() for c in wanted if c.method == "snip" and c.density == 0.05]
    snip = rows["snip", "0.05"]
    assert float(snip["mean"]) == pytest.approx(np.mean(both), abs=1e-6)
    assert float(snip["std"]) == pytest.approx(np.std(both, ddof=1), abs=1e-6)
    assert (snip["n"], snip["wanted"], snip["missing"], snip["weights_trained"]) == ("2", "2", "", "500")
    late = [accuracy[c][1:].max() for c in wanted if c.method == "imp" and c.density == 0.01]
    assert float(rows["imp", "0.01"]["mean"]) == pytest.approx(np.mean(late), abs=1e-6)
    assert (rows["force", "0.01"]["n"], rows["force", "0.01"]["missing"]) == ("1", "not run yet")
    assert (rows["grasp", "0.05"]["mean"], rows["grasp", "0.05"]["missing"]) == ("", "the scores are all 0")
    assert rows["dense", ""]["n"] == "2"


def test_panels_name_what_a_method_does_not_reach(tmp_path, write_run):
    wanted = configurations(["dctps", "snip", "grasp"])
    for config in wanted:
        if config.method == "dctps" or (config.method == "snip" and config.density > 0.01):
            write_run(tmp_path, config, [0.5])
    (panel,) = make_panels(read_runs(tmp_path), wanted, {}, lambda run: run.test_accuracy)
    axes = {a.get_title(loc="left"): a for a in draw_families(panel, "accuracy").axes}
    at_once = axes["no offset, pruned at initialisation at once"]
    labels = [text.get_text() for text in at_once.get_legend().get_texts()]
    assert labels == ["DCTpS", "SNIP"]
    assert "not run yet: SNIP at 1%; GraSP" in at_once.get_xlabel().replace("\n", " ")
    edges = [line.get_xdata()[0] for line in at_once.lines if len(set(line.get_xdata())) == 1]
    assert any(0.01 < edge < 0.05 for edge in edges)


def test_every_trained_number_is_an_axis_and_a_column(tmp_path, write_run):
    """Rivals have a second curve by their init, norms alone a point, and density 0 its place."""
    dctps = configurations(["dctps"], densities=(0.05, 0.01, 0), seeds=(0,))
    rivals = configurations(["snip"]) + configurations(["snip"], init="fan-in")
    flat = configurations(["norms", "dense"], densities=(None,), seeds=(0,))
    for config in [*dctps, *rivals, *flat]:
        nnz = {"norms": 30, "dense": 10**6}.get(config.method, round(1e5 * (config.density or 0)))
        write_run(tmp_path / "runs", config, [0.3 + 0.1 * (config.init == "fan-in")], nnz=nnz)
    runs, wanted = read_runs(tmp_path / "runs"), [*dctps, *rivals, *flat]
    files = draw_figure("2", runs, wanted, {}, tmp_path, "trained")
    assert [file.name for file in files] == [f"figure2-trained.{kind}" for kind in ("csv", "png", "pdf")]
    rows = {(r["method"], r["density"]): (r["numbers_trained"], r["mean"]) for r in rows_in(files[0])}
    assert rows["dctps", "0"] == ("12", "0.3") and rows["norms", ""] == ("42", "0.3")
    assert rows["snip", "0.01"] == ("1012", "0.3") and rows["snip fan-in", "0.01"] == ("1012", "0.4")
    panels = make_panels(runs, wanted, {}, lambda run: run.test_accuracy)
    places = {"density": {}, "trained": {}}
    for x, found in places.items():
        axes = draw_panels(panels, "accuracy", x).axes[0]
        assert axes.get_xlabel().startswith("numbers trained" if x == "trained" else "density")
        found |= {c.get_label(): list(c[0].get_xdata()) for c in axes.containers}
        lines = [line.get_label() for line in axes.lines if list(line.get_xdata()) == [0, 1]]
        assert lines == (["dense"] if x == "trained" else ["norms alone", "dense"])
    assert places["trained"]["DCTpS"] == [5012, 1012, 12]
    assert places["trained"]["SNIP"] == places["trained"]["SNIP, fan-in"] == [5012, 1012]
    assert places["trained"]["norms alone"] == [42]
    assert places["density"]["DCTpS"] == pytest.approx([0.05, 0.01, 0.002], rel=0.2)
    draw_figure("table1", runs, wanted, {}, tmp_path)
    rows = {(r["method"], r["density"]): r["numbers_trained"] for r in rows_in(tmp_path / "table1.csv")}
    assert rows["snip fan-in", "0.05"] == "5012" and rows["dense", ""] == "1000012"
    assert "| norms alone:" in (tmp_path / "table1.md").read_text()


def test_longer_runs_are_drawn_beside_the_short_ones(tmp_path, write_run):
    many = configurations(SPARSE, epochs=2)
    longer = configurations(["dctps", "random-epl"], densities=(0.01,), epochs=7)
    for config in many + longer:
        write_run(tmp_path / "runs", config, [0.2 + 0.01 * config.epochs])
    files = draw_figure("1", read_runs(tmp_path / "runs"), many + longer, {}, tmp_path)
    assert {file.stem for file in files} == {"figure1", "figure1-longer"}
    found = {(r["epochs"], r["method"]): float(r["mean"]) for r in rows_in(tmp_path / "figure1-longer.csv")}
    expected = {(str(e), m): 0.2 + 0.01 * e for e in (2, 7) for m in ("dctps", "random-epl")}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["2", "3"])
def test_test_accuracy_of_several_networks(tmp_path, write_run, name):
    wanted = [c for m in ("lenet5", "vgg19", "resnet18") for c in configurations(["dctps", "dense"], model=m)]
    for config in dict.fromkeys(wanted):
        write_run(tmp_path / "runs", config, [0.9, 0.4], test=0.6)
    draw_figure(name, read_runs(tmp_path / "runs"), wanted, {}, tmp_path)
    rows = rows_in(tmp_path / f"figure{name}.csv")
    assert len(rows) == 3 * 3 and {row["mean"] for row in rows} == {"0.6"}


def test_a_panel_says_what_failed_and_the_file_says_why(tmp_path, write_run):
    wanted = configurations(["dctps", "snip"])
    for config in wanted[:4]:
        write_run(tmp_path, config, [0.5])
    reason = "ValueError: criterion 'snip' cannot rank this network: all is zero"
    panels = make_panels(
        read_runs(tmp_path), wanted, dict.fromkeys(wanted[4:], reason), lambda run: run.test_accuracy
    )
    axes = draw_panels(panels, "accuracy").axes[0]
    assert axes.get_title() == "LeNet-5, digits\n20 epochs"
    assert axes.get_xlabel() == "density, and weights trained\nfailed: SNIP"
    assert {row["missing"] for row in rows_of(panels) if row["method"] == "snip"} == {reason}


def test_figure_5_joins_emptied_layers_with_accuracy(tmp_path, write_run):
    layers = [{"name": "a", "nnz": 3, "offset": "zero"}, {"name": "b", "nnz": 0, "offset": "zero"}]
    under = [{"name": "a", "nnz": 0, "offset": "dct"}, {"name": "b", "nnz": 3, "offset": "dct"}]
    wanted = configurations(["snip", "dctps"], seeds=(0,))
    for config in wanted:
        write_run(tmp_path / "runs", config, [0.3], rows=layers if config.method == "snip" else under)
    files = draw_figure("5", read_runs(tmp_path / "runs"), wanted, {}, tmp_path)
    assert {file.stem for file in files} == {"figure5-accuracy"}
    rows = rows_in(tmp_path / "figure5-accuracy.csv")
    assert [(r["method"], r["emptied_layers"], r["test_accuracy"]) for r in rows] == [
        *[("snip", "1", "0.3")] * 2,
        *[("dctps", "0", "0.3")] * 2,
    ]


def test_every_sweep_file_is_a_sweep():
    for name in FIGURES:
        for scale in ("full", "reduced"):
            wanted = runs_of_figure(name, scale)
            assert "sdctps" in {config.method for config in wanted.runs.values()}
            assert len(wanted.runs) >= 10
    full = runs_of_figure("1", "full").trained.values()
    with_norms_or_not = set(METHODS) - {"norms"}  # LeNet-5 has none
    assert {config.method for config in full} == with_norms_or_not
    assert {c.method for c in runs_of_figure("1", "reduced").trained.values()} == with_norms_or_not
    panels = {(config.model, config.dataset) for config in runs_of_figure("2", "full").trained.values()}
    assert panels == {(m, d) for m in ("resnet50", "vgg19") for d in ("cifar10", "cifar100")}


def test_fields_choose_and_replace():
    wanted = runs_of_figure("1", "reduced", ["method=dctps,imp", "seed=5", "epochs=3", "density=0.1"])
    assert {(c.method, c.seed, c.epochs, c.density) for c in wanted.trained.values()} == {
        ("dctps", 5, 3, 0.1),
        ("imp", 5, 3, 0.1),
    }
    with pytest.raises(ValueError, match="figure 1 has no method 'dtcps': choose from"):
        runs_of_figure("1", "reduced", ["method=dtcps"])
    with pytest.raises(ValueError, match="field"):
        runs_of_figure("1", "reduced", ["epoch=3"])
    with pytest.raises(ValueError, match="figure"):
        runs_of_figure("7", "reduced")


def test_failures_are_remembered_until_they_are_not(tmp_path):
    runs = runs_of_figure("1", "reduced", ["method=snip,dense"]).trained
    first, second = list(runs)[:2]
    keep_failures(tmp_path, runs, {first: "too hot", second: "too cold"})
    assert read_failures(tmp_path, runs) == {runs[first]: "too hot", runs[second]: "too cold"}
    keep_failures(tmp_path, {second: runs[second]}, {})
    assert read_failures(tmp_path, runs) == {runs[first]: "too hot"}
    (tmp_path / "failed.json").write_text("[")
    with pytest.raises(ValueError, match="damaged"):
        read_failures(tmp_path, runs)


def test_files_do_not_change_from_one_drawing_to_the_next(tmp_path):
    def drawn(where):
        figure = style_module.new_figure(2)
        figure.subplots().plot([1, 2])
        return [file.read_bytes() for file in save(tmp_path / where, "x", [{"a": 1, "b": None}], figure)]

    assert drawn("one") == drawn("two")
    assert to_csv([{"a": 1, "b": None}, {"a": 2, "c": 3}]) == b"a,b,c\n1,,\n2,,3\n"


def test_without_matplotlib_the_extra_is_named_before_any_training(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(style_module, "find_spec", lambda name: None)
    assert main(["figure", "1", "--out", str(tmp_path / "x")]) == 2
    assert "pip install 'dctps[figures]'" in capfd.readouterr().err
    assert not (tmp_path / "x").exists()


TOY = ["dataset=digits", "seed=0,1", "epochs=1", "train_images=64", "density=0.05,0.01"]


def test_one_command_trains_what_is_missing_and_draws(tmp_path, capfd):
    argv = [
        "figure",
        "1",
        *TOY,
        "method=dctps,dense",
        "--scale",
        "reduced",
        "--out",
        str(tmp_path),
        "--no-progress",
    ]
    assert main(argv) == 0
    assert str(tmp_path / "figure1.png") in capfd.readouterr().out
    rows = rows_in(tmp_path / "figure1.csv")
    assert [(row["method"], row["n"]) for row in rows] == [("dctps", "2"), ("dctps", "2"), ("dense", "2")]
    origin = json.loads((tmp_path / "figure1.json").read_text())
    assert origin["command"] == f"dctps figure 1 {' '.join(TOY)} method=dctps,dense --scale reduced"
    assert (origin["runs"], origin["finished"]) == (6, 6) and origin["trained_on"][0]["threads"] == 1
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert main([*argv, "--draw-only"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_a_run_that_fails_is_missing_with_its_reason(tmp_path, capfd):
    fields = [
        "dataset=digits",
        "seed=0",
        "epochs=1",
        "density=0.05",
        "method=dctps",
        "lr=1e30",
        "optimizer=sgd",
    ]
    argv = ["figure", "1", *fields, "--scale", "reduced", "--no-progress", "--out", str(tmp_path)]
    assert main(argv) == 2
    assert "loss" in capfd.readouterr().err
    (row,) = rows_in(tmp_path / "figure1.csv")
    assert row["n"] == "0" and row["mean"] == "" and "loss" in row["missing"]
    assert main([*argv, "--draw-only"]) == 0
    assert rows_in(tmp_path / "figure1.csv") == [row]


def test_figures_4_and_5_from_networks_before_their_training(tmp_path):
    wanted = configurations(["dctps", "random-epl", "snip"], densities=(0.05, 0.0005))
    runs = {f"run{i}": config for i, config in enumerate(wanted)}
    failed = for_all(examine, runs, tmp_path / "runs", print, threads=1)
    assert not failed
    found = read_runs(tmp_path / "runs")
    draw_figure("4", found, wanted, {}, tmp_path)
    summary = {(r["method"], r["density"]): r for r in rows_in(tmp_path / "figure4-summary.csv")}
    full, dead = summary["dctps", "0.0005"], summary["random-epl", "0.0005"]
    assert (full["n"], full["values"], full["not_zero"]) == ("2", "160", "160.0")
    assert (dead["not_zero"], float(dead["largest"])) == ("0.0", 0)
    values = rows_in(tmp_path / "figure4.csv")
    assert len(values) == 6 * 160
    spectra = [read_examined(run.path)["spectrum"] for run in found if run.config in wanted[:2]]
    first = [float(row["mean"]) for row in values if (row["method"], row["density"]) == ("dctps", "0.05")]
    assert first == pytest.approx(list(np.mean(spectra, axis=0)), rel=1e-5)

    files = draw_figure("5", found, wanted, {}, tmp_path)
    assert {file.stem for file in files} == {"figure5"}
    rows = [r for r in rows_in(tmp_path / "figure5.csv") if (r["method"], r["density"]) == ("snip", "0.05")]
    assert sum(float(row["mean"]) for row in rows) == pytest.approx(round(0.05 * 61470))


def test_what_cannot_be_examined_does_not_stop_the_rest(tmp_path):
    bad = resolve(RunConfig(method="snip", model="fixup-resnet20"))
    runs = {"bad": bad, "good": resolve(RunConfig(density=0.05))}
    notes = []
    (name,) = failed = for_all(examine, runs, tmp_path, notes.append, threads=1)
    assert name == "bad" and "score" in failed["bad"] and len(notes) == 2
    assert read_examined(tmp_path / "good") is not None


def test_the_second_cost_of_a_process_counts_memory_that_the_first_has_freed(tmp_path):
    dense = RunConfig(method="dense", model="vgg11", train_images=8, eval_images=8, batch_size=4)
    for name in ("first", "second"):
        measure_cost(dense, tmp_path / name, threads=1)
        cost = read_cost(tmp_path / name)
        assert cost["begin_peak_bytes"] >= 0.95 * cost["final_bytes"] > 3e7


def test_table_1_has_what_is_lost_and_what_was_measured(tmp_path):
    wanted = configurations(["dctps", "snip", "dense"], densities=(0.05, 0.01), seeds=(0,))
    for i, config in enumerate(dict.fromkeys(wanted)):
        write = {"epochs": 1, "train_images": 64, "eval_images": 32}
        config = resolve(replace(config, **write))
        run(config, out=tmp_path / "runs" / str(i), threads=1)
        measure_cost(config, tmp_path / "runs" / str(i), threads=1)
    found = read_runs(tmp_path / "runs")
    wanted = [run.config for run in found]
    files = draw_figure("table1", found, wanted, {}, tmp_path)
    assert [file.name for file in files] == ["table1.csv", "table1.md"]
    rows = {(row["method"], row["density"]): row for row in rows_in(files[0])}
    accuracy = {run.config.method: run.test_accuracy for run in found if run.config.density in (None, 0.01)}
    lost = float(rows["snip", "0.01"]["accuracy_drop"])
    assert lost == pytest.approx(accuracy["dense"] - accuracy["snip"])
    trained = {run.config.method: run for run in found if run.config.density in (None, 0.01)}
    for method, run_ in trained.items():
        row = rows[method, "0.01" if method != "dense" else ""]
        # values, gradients and Adam's two slots are float32 each; step counters come on top
        assert float(row["train_bytes"]) >= 16 * run_.numbers_trained
        assert float(row["step_seconds"]) > 0 and float(row["begin_seconds"]) > 0
        assert float(row["final_bytes"]) == run_.summary["report"]["disk_bytes"]
    assert float(rows["dctps", "0.01"]["train_bytes"]) < 0.2 * float(rows["dense", ""]["train_bytes"])
    table = files[1].read_text()
    assert "| SNIP |" in table and "O(N + F)" in table and "missing" not in table


def test_toml_is_as_written():
    for path in sorted((style_module.Path(style_module.__file__).parent / "sweeps").glob("*.toml")):
        assert tomllib.loads(path.read_text())["runs"]
