"""A sweep as one page of HTML, from its run folders alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dctps.analysis.curves import QUANTITIES, Notes, Panel, Point, make_panels, panel_of
from dctps.analysis.fates import Fates, read_fates
from dctps.analysis.page import charts, heading, lacking, page, paragraph, table, text
from dctps.analysis.page_charts import accuracy_charts, learning_charts, learning_lines
from dctps.analysis.runs import Run
from dctps.analysis.style import style
from dctps.experiments.config import RunConfig, to_dict
from dctps.experiments.records import RunFolderError, read_data
from dctps.files import write_atomically
from dctps.sweeps.grid import Runs

_AXES = ("model", "dataset", "epochs", "train_images", "method", "init", "density", "seed")
_MACHINE = ("device", "threads", "processes", "cpu", "kernels", "versions")
_TABLE = "Percent, mean ± standard deviation over the seeds."
_NUMBERS = "Numbers trained: weights, alphas, biases and norms."


def write_report(*folders: Path, file: Path, wanted: Runs | None = None) -> None:
    """Write the page of the runs in some folders, of sweeps or of single runs, to `file`.

    Runs that are `wanted`, from `grid`, and have no folder are shown as missing; of a damaged one the page
    says so. Without any run that is a ValueError.
    """
    fates = read_fates(*folders, wanted=wanted)
    title = f"Sweep {folders[0].resolve().name}" if len(folders) == 1 else f"{len(fates.names)} runs"
    write_atomically(file, to_page(title, fates).encode())


def to_page(title: str, fates: Fates) -> str:
    """The page, of runs that are there and of runs that are wanted."""
    runs, names, notes = fates.runs, fates.names, fates.notes
    parts = [paragraph(_overview(fates))]
    for label, configs in _groups(list(names)).items():
        parts += _results(label, [run for run in runs if run.config in configs], list(configs), notes)
    parts += [heading("Runs"), _run_table(fates)]
    parts += [heading("Configuration"), *_configuration(list(names))]
    parts += [heading("Data"), _data(runs), heading("Environment"), _environments(runs)]
    return page(title, parts)


def _overview(fates: Fates) -> str:
    counts = fates.count()
    seconds = sum(run.summary.get("seconds", 0) for run in fates.runs if run.summary is not None)
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    total = sum(counts.values())
    return f"{total} runs: {states}. The finished ones trained for {seconds / 3600:.2f} hours in all."


def _groups(configs: Sequence[RunConfig]) -> dict[str, set[RunConfig]]:
    """Configurations that differ in method, init, density and seed, by the fields that tell groups apart."""
    cells: dict[tuple[Any, ...], list[RunConfig]] = {}
    for config in configs:
        cells.setdefault(tuple(getattr(config, name) for name in _AXES), []).append(config)
    varied = [
        field.name
        for field in fields(RunConfig)
        if any(len({getattr(c, field.name) for c in cell}) > 1 for cell in cells.values())
    ]
    groups: dict[str, set[RunConfig]] = {}
    for config in configs:
        label = ", ".join(f"{name} {getattr(config, name)}" for name in varied)
        groups.setdefault(label, set()).add(config)
    return groups


def _results(label: str, runs: Sequence[Run], configs: Sequence[RunConfig], notes: Notes) -> list[str]:
    """A table and charts of each accuracy, network and data set, and how the runs got there."""
    parts = []
    for quantity, value in QUANTITIES.items():
        for panel in make_panels(runs, configs, notes, value):
            if quantity != "test accuracy" and panel.empty:
                continue  # nothing was held out, or nothing is finished
            name = f"{quantity.capitalize()}: {_name(panel, label)}"
            parts += [heading(name), paragraph(_TABLE), _panel_table(panel, _cell), *_failures(panel)]
            if quantity == "test accuracy":
                parts += [paragraph(_NUMBERS), _panel_table(panel, _numbers)]
            if not panel.empty:
                parts.append(charts(accuracy_charts(panel, quantity)))
    for panel in make_panels(runs, configs, notes, QUANTITIES["test accuracy"]):
        for quantity in ("validation accuracy", "test accuracy"):
            held_out = quantity == "validation accuracy"
            own = [run for run in runs if panel_of(run.config) == panel.key]
            lines = learning_lines([run for run in own if (run.config.validation_size > 0) == held_out])
            if any(len(line) > 1 for methods in lines.values() for line in methods.values()):
                name = f"{quantity.capitalize()} after each epoch: {_name(panel, label)}"
                parts += [heading(name), charts(learning_charts(lines, panel.flat, quantity, panel.title))]
    return parts


def _name(panel: Panel, label: str) -> str:
    return ", ".join(word for word in (panel.title, panel.effort, label) if word)


def _panel_table(panel: Panel, cell: Callable[[Point], str]) -> str:
    """Methods by densities."""
    cells = {m: {f"{100 * p.density:g}%": cell(p) for p in curve} for m, curve in panel.curves.items()}
    columns = [f"{100 * density:g}%" for density in panel.densities]
    for method, name in (("norms", "none"), ("dense", "all")):  # of the weights
        if method in panel.flat:
            columns, cells = [name, *columns], {method: {name: cell(panel.flat[method])}} | cells
    # What is no part of the sweep stays empty.
    rows = [[text(style(m).label), *(row.get(c, "") for c in columns)] for m, row in cells.items()]
    return table(["density", *columns], rows, numbers=range(1, 1 + len(columns)))


def _failures(panel: Panel) -> list[str]:
    """Why methods have no value at all."""
    lines = []
    for method, row in panel.rows.items():
        notes = dict.fromkeys(point.cell.note for point in row if point.cell.note)
        if notes and all(point.cell.missing for point in row):
            lines.append(paragraph(f"{style(method).label}: all runs failed: {'; '.join(notes)}"))
    return lines


def _numbers(point: Point) -> str:
    return "" if point.numbers is None else text(f"{point.numbers:,}")


def _cell(point: Point) -> str:
    cell = point.cell
    if cell.missing and cell.note:
        return lacking("failed")
    if cell.n == cell.wanted:
        return text(cell)
    return lacking(cell).replace(" (n=", "<br>(n=")  # the column stays narrow


def _run_table(fates: Fates) -> str:
    """What became of each run."""
    found = {run.config: run for run in fates.runs}
    states = [(name, fates.states[config], found.get(config)) for config, name in fates.names.items()]
    states += [(name, state, None) for name, state in fates.unknown()]
    rows = []
    for name, state, run in sorted(states, key=lambda row: row[0]):
        numbers = [_percent(run.test_accuracy), _percent(run.max_val_accuracy)] if run else ["", ""]
        if run is None or run.summary is None:
            rows.append([text(name), lacking(state), *numbers, *[""] * 4])
            continue
        counts = run.weights_trained, run.numbers_trained, run.summary["report"].get("disk_bytes")
        numbers += ["" if count is None else f"{count:,}" for count in counts]
        numbers.append(f"{run.summary.get('seconds', 0):,.0f}")
        rows.append([text(name), text(state), *map(text, numbers)])
    header = ["run", "state", "test %", "max. val. %", "weights trained", "numbers trained"]
    header += ["bytes", "seconds"]
    return table(header, rows, numbers=range(2, len(header)), wide=[0, 1])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _configuration(configs: Sequence[RunConfig]) -> list[str]:
    """What all runs share, and what they differ in."""
    values: dict[str, list[Any]] = {}
    for config in configs:
        for name, value in to_dict(config).items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    shared = [[text(name), text(v[0])] for name, v in values.items() if len(v) == 1 and v[0] is not None]
    varied = [
        [text(name), text(", ".join("none" if value is None else str(value) for value in found))]
        for name, found in values.items()
        if len(found) > 1
    ]
    parts = [heading("Differs", 3), table(["field", "values"], varied, wide=[1])] if varied else []
    return [*parts, heading("Shared", 3), table(["field", "value"], shared, wide=[1])]


def _data(runs: Sequence[Run]) -> str:
    """What the runs were trained on."""
    found = []
    for run in runs:
        try:
            data = read_data(run.path)
        except RunFolderError as error:
            data = {"name": str(error)}
        if data is not None and data not in found:
            found.append(data)
    columns = ("name", "classes", "channels", "image_size", "train", "test")
    rows = []
    for data in found:
        sums = "; ".join(f"{part} {value}" for part, value in dict(data.get("sha256", {})).items())
        rows.append([*(text(data.get(column, "")) for column in columns), text(sums)])
    header = ["data set", "classes", "channels", "side", "training images", "test images", "SHA-256"]
    return table(header, rows, numbers=range(1, 6), wide=[6])


def _environments(runs: Sequence[Run]) -> str:
    """On which machines the finished runs were trained, and how many of them on each."""
    counts: dict[tuple[str, ...], int] = {}
    for run in runs:
        if run.summary is not None:
            stages = [*run.summary.get("earlier_environments", []), run.summary]
            key = tuple(" then ".join(dict.fromkeys(_machine(s, name) for s in stages)) for name in _MACHINE)
            counts[key] = counts.get(key, 0) + 1
    rows = [[*map(text, key), text(count)] for key, count in counts.items()]
    return table([*_MACHINE, "runs"], rows, numbers=[len(_MACHINE)])


def _machine(environment: Mapping[str, Any], name: str) -> str:
    if name == "versions":
        return ", ".join(f"{package} {version}" for package, version in environment.get(name, {}).items())
    return str(environment.get(name, ""))
