"""What a reader of the pictures would object to: small or cut letters, empty panels, values left out."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from dctps.analysis import style as style_module
from dctps.analysis.figure_runs import runs_of_figure
from dctps.analysis.figures import draw_figure
from dctps.analysis.runs import read_runs
from dctps.analysis.style import STYLES
from dctps.experiments.config import RunConfig, resolve, to_dict
from dctps.experiments.methods import METHODS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LABELS = {look.label: look for look in STYLES.values()} | {
    "dct": STYLES["dctps"], "sdct": STYLES["sdctps"], "nn.Linear": STYLES["dense"],
}  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, by drawing."""
    figures = []

    def image(figure, kind, dpi=200):
        if not any(figure is known for known in figures):
            figures.append(figure)
        return b""

    monkeypatch.setattr(style_module, "image", image)
    return figures


def words(figure):
    """What can be read, with the rectangle of each in pixels; ticks outside of their axes are not drawn."""
    FigureCanvasAgg(figure).draw()
    hidden = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted((low, high))
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not (low <= tick.get_loc() <= high and axes.axison):
                    hidden |= {tick.label1, tick.label2}
        if not axes.axison:
            hidden |= {axes.xaxis.label, axes.yaxis.label}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    return [(text, text.get_window_extent()) for text in texts]


def check(figure):
    """Nothing small, cut off, on top of another, empty, or in another colour than its method's."""
    found = words(figure)
    assert figure.get_figwidth() <= 7.2  # inches: at the 640 pixels of a page's column letters stay readable
    assert min(text.get_fontsize() for text, _ in found) >= 8
    width, height = figure.canvas.get_width_height()
    for text, box in found:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, (text.get_text(), box)
    for (text, box), (other, place) in itertools.combinations(found, 2):
        across = min(box.x1, place.x1) - max(box.x0, place.x0)
        along = min(box.y1, place.y1) - max(box.y0, place.y0)
        assert across < 2 or along < 2, (text.get_text(), other.get_text())
    for axes in figure.axes:
        told = [text for text in axes.texts if text.get_text()]
        curves = [line for line in axes.lines if len(line.get_xdata())]
        assert curves or told or axes.images or axes.patches or axes.collections, axes.get_title()
        for line in curves:
            if line.get_transform() == axes.transData:
                for values, limits in (
                    (line.get_xdata(), axes.get_xlim()),
                    (line.get_ydata(), axes.get_ylim()),
                ):
                    low, high = sorted(limits)
                    assert low <= np.nanmin(values) and np.nanmax(values) <= high
            look = LABELS.get(line.get_label().partition(",")[0].partition(":")[0])
            if look is not None:
                assert line.get_color() == look.color
                assert line.get_marker() in (look.marker, "None", "")
    return " ".join(text.get_text().replace("\n", " ") for text, _ in found)


def configurations(methods, densities, seeds=(0,), **fields):
    return [
        resolve(RunConfig(method=m, density=d, seed=s, **fields))
        for m in methods
        for d in densities
        for s in seeds
    ]


EIGHT = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005)
SETS = {
    "everything": (list(METHODS), EIGHT, (0, 1), ()),
    "without a family": (["dctps", "sdctps", "snip", "dense"], EIGHT, (0, 1), ()),
    "one density": (["dctps", "snip", "dense"], (0.01,), (0,), ()),
    "one method, one density": (["sdctps"], (0.01,), (0,), ()),
    "dense alone": (["dense"], (0.01,), (0,), ()),
    "densities close together": (["dctps", "snip"], (0.011, 0.0105, 0.01), (0, 1), ()),
    "failed": (list(METHODS), (0.05, 0.01, 0.001), (0, 1), ("snip", "grasp", "synflow", "dense")),
    "a family failed": (list(METHODS), (0.01, 0.001), (0, 1), ("snip", "grasp", "magnitude")),
    "all failed": (["dctps", "snip", "dense"], (0.01, 0.001), (0,), ("dctps", "snip", "dense")),
}


@pytest.mark.parametrize(
    ("name", "choice"),
    [*((name, choice) for name in "12" for choice in SETS if choice != "all failed"), ("3", "all failed")],
)
def test_accuracy(tmp_path, write_run, drawn, name, choice):
    methods, densities, seeds, failing = SETS[choice]
    models = (
        ("lenet5",)
        if name == "1"
        else ("vgg19", "fixup-resnet110", "mobilenetv2")[: 3 if len(methods) < 9 else 2]
    )
    wanted = [c for model in models for c in configurations(methods, densities, seeds, model=model)]
    wanted = list(dict.fromkeys(wanted))
    rng = np.random.default_rng(0)
    for config in wanted:
        partly = config.method == "imp" and config.seed == 1
        if config.method not in failing and not partly:
            nnz = round(1e6 * (config.density or 1))
            write_run(tmp_path / "runs", config, [rng.uniform(0, 1)], nnz=nnz)
    reason = "ValueError: " + "the scores of this network are all 0 " * 5
    notes = {config: reason for config in wanted if config.method in failing}
    folder = tmp_path / "runs"
    draw_figure(name, read_runs(folder) if folder.exists() else [], wanted, notes, tmp_path)
    assert drawn
    told = " ".join(check(figure) for figure in drawn)
    assert reason[12:40] not in told
    for method in set(failing) & set(methods):
        assert STYLES[method].label in told
    assert ("failed" in told) == bool(failing)


@pytest.mark.parametrize("x", ["density", "trained"])
@pytest.mark.parametrize("many", [False, True])
def test_density_0_and_both_axes(tmp_path, write_run, drawn, many, x):
    wanted = configurations(["dctps", "sdctps", "norms", "dense"], (*EIGHT, 0))
    rivals = [m for m in METHODS if resolve(RunConfig(method=m)).offset == "zero" and m != "imp"]
    for init in ("dense", "fan-in"):
        wanted += configurations(rivals if many else ["snip"], EIGHT, init=init)
    wanted = list(dict.fromkeys(wanted))
    for i, config in enumerate(wanted):
        nnz = round(
            1e6 * (0.001 if config.method == "norms" else 1 if config.density is None else config.density)
        )
        write_run(tmp_path / "runs", config, [0.1 + 0.001 * i], nnz=nnz)
    draw_figure("2", read_runs(tmp_path / "runs"), wanted, {}, tmp_path, x)
    (figure,) = drawn
    told = check(figure)
    assert "SNIP, fan-in" in told and "norms alone" in told
    assert (" 0% " in told) == (x == "density")


def examined(root, config, spectrum, layers):
    """A run folder as `examine` leaves it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(to_dict(config)))
    rows = [
        {"name": f"layer{i}", "nnz": nnz, "offset": "dct" if "dct" in config.method else "zero"}
        for i, nnz in enumerate(layers)
    ]
    for file in ("initial.json", "trained.json")[: 2 if config.train_images else 1]:
        (root / file).write_text(json.dumps({"spectrum": list(spectrum), "layers": rows}))


STATIC = list(runs_of_figure("4", "full").runs.values())


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"method": ["snip"]},
        {"method": ["random-epl", "random-erk"]},
        {"density": [0.01]},
        {"method": ["dctps"], "density": [0.0001]},
        {"method": ["snip"], "density": [0.0001]},
    ],
    ids=str,
)
def test_spectra_and_layers(tmp_path, drawn, choice):
    wanted = [c for c in STATIC if all(getattr(c, name) in values for name, values in choice.items())]
    full = np.logspace(2, 0, 160)
    spectra = {
        "snip": np.zeros(160),
        "grasp": np.zeros(160),
        "synflow": np.concatenate([np.logspace(2, -70, 120), np.zeros(40)]),
        "force": np.logspace(0, -40, 160),
    }
    failing = [config for config in wanted if config.method == "iter-snip"]
    for i, config in enumerate(wanted):
        if config not in failing:
            rng = np.random.default_rng(i)
            layers = rng.integers(0, 3, 54) * rng.integers(0, 3000, 54)
            examined(tmp_path / "runs" / str(i), config, spectra.get(config.method, full), layers.tolist())
    notes = dict.fromkeys(failing, "ValueError: too hot")
    runs = read_runs(tmp_path / "runs")
    draw_figure("4", runs, wanted, notes, tmp_path)
    draw_figure("5", runs, wanted, notes, tmp_path)
    spectra_, layers_ = drawn
    told = check(spectra_)
    check(layers_)

    # Every value that is not in the picture is counted in words.
    for method, spectrum in spectra.items():
        if not any(c.method == method for c in wanted):
            continue
        label = STYLES[method].label
        lines = [line for axes in spectra_.axes for line in axes.lines if line.get_label() == label]
        points = {len(line.get_xdata()) for line in lines if len(line.get_xdata())}
        zeros = int((spectrum == 0).sum())
        if zeros == 160:
            assert points == set() and "all 0" in told
            continue
        (count,) = points
        below = 160 - zeros - count
        assert below > 0 and f"{below} below the axis" in told
        assert not zeros or f"{zeros} are 0" in told
    if failing:
        assert "failed: Iter-SNIP" in told
        assert STYLES["iter-snip"].label in check(layers_)


def test_layers_of_a_method_that_failed_everywhere_have_a_line(tmp_path, drawn):
    wanted = [c for c in STATIC if c.method in ("dctps", "snip") and c.density == 0.01 and c.seed == 0]
    wanted = [c for c in wanted if c.train_images is None]
    for config in wanted:
        if config.method == "dctps":
            examined(tmp_path / "runs" / "one", config, np.ones(4), [3, 2, 1])
    draw_figure("5", read_runs(tmp_path / "runs"), wanted, {}, tmp_path)
    told = check(drawn[0])
    assert "SNIP" in told and "no run" in told


def test_accuracy_against_emptied_layers(tmp_path, write_run, drawn):
    for model in ("resnet50", "vgg19"):
        for i, config in enumerate(configurations(list(METHODS), EIGHT, (0, 1), model=model)):
            layers = [{"name": str(k), "nnz": int(k > i % 40), "offset": "zero"} for k in range(50)]
            write_run(tmp_path / "runs", config, [0.1 + 0.001 * i], rows=layers)
    runs = read_runs(tmp_path / "runs")
    draw_figure("5", runs, [run.config for run in runs], {}, tmp_path)
    check(drawn[0])


def test_the_committed_pictures_are_drawn_from_the_committed_numbers(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import figure_tables
    import moments
    import overview
    import speed_plots
    import worth_plots

    figures = {}
    for module in (figure_tables, moments, overview, speed_plots, worth_plots):
        monkeypatch.setattr(module, "image", lambda figure, kind: figure)
        monkeypatch.setattr(module, "write_atomically", lambda path, figure: figures.update({path: figure}))
    results = BENCHMARKS / "results"
    figure_tables.draw_figures(results)
    speed_plots.plots(moments.FIGURE.parent)
    overview.plot(moments.FIGURE.parent)
    worth_plots.plots(moments.FIGURE.parent)
    moments.figure(json.loads(moments.RESULT.read_text()))
    committed = [*results.glob("*.png"), *moments.FIGURE.parent.glob("*.png")]
    assert sorted(figures) == sorted(committed) and len(committed) == 13
    for figure in figures.values():
        check(figure)
    for name in ("figure4-summary", "figure5"):
        with (results / f"{name}.csv").open() as file:
            methods = {row["method"] for row in csv.DictReader(file)}
        told = check(figures[results / f"{name.partition('-')[0]}.png"])
        assert all(STYLES[method].label in told for method in methods)


def test_the_check_would_notice():
    """Each of its complaints, once."""

    def figure(**change):
        made = style_module.new_figure(2)
        axes = made.subplots()
        axes.plot([1, 2], color=STYLES["snip"].color, label="SNIP")
        axes.set_title(change.get("title", "title"), fontsize=change.get("size", 9))
        axes.set_ylim(0, change.get("top", 3))
        axes.lines[0].set_color(change.get("color", STYLES["snip"].color))
        if "twice" in change:
            made.text(0.5, 0.5, "here")
            made.text(0.5, 0.5, "there")
        if "empty" in change:
            axes.lines[0].remove()
        return made

    check(figure())
    complaints = (
        {"title": "long " * 50}, {"size": 5}, {"top": 1.5}, {"color": "red"}, {"twice": 1}, {"empty": 1},
    )  # fmt: skip
    for change in complaints:
        with pytest.raises(AssertionError):
            check(figure(**change))
