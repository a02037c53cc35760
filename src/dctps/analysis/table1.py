"""Table 1: what each method loses in accuracy, and what it costs to begin, to train and to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dctps.analysis.aggregate import Cell, over_seeds, setting
from dctps.analysis.curves import Notes, Panel, curve_of, make_panels, panel_of
from dctps.analysis.runs import Run
from dctps.analysis.style import save, style
from dctps.benchmarking.costs import MEASURED, read_cost
from dctps.experiments.config import RunConfig
from dctps.files import write_atomically

# To begin, in a step of training, and when done. N: weights; K: those that train; F: operations of a dense
# step; T: rounds of a criterion; n: inputs of a layer, over whose outputs D costs n log n each time.
_RANDOM = ("O(K)", "O(K)", "O(K)")
ORDERS: dict[str, tuple[str, str, str]] = {
    **dict.fromkeys(("dctps", "sdctps", "dctps-rigl", "sdctps-rigl"), ("O(K)", "O(K + n log n)", "O(K)")),
    **dict.fromkeys(("random-uniform", "random-epl", "random-epf", "random-erk"), _RANDOM),
    **dict.fromkeys(("rigl", "set", "dsr"), _RANDOM),
    "magnitude": ("O(N)", "O(K)", "O(K)"),
    **dict.fromkeys(("snip", "grasp"), ("O(N + F)", "O(K)", "O(K)")),
    **dict.fromkeys(("synflow", "force", "iter-snip"), ("O(N + T F)", "O(K)", "O(K)")),
    **dict.fromkeys(("hyperplane", "norms", "dense"), ("O(N)", "O(N)", "O(N)")),
}


def table1(runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, out: Path) -> list[Path]:
    """Write table1.csv, and table1.md with the costs at the lowest density."""
    panels = make_panels(runs, wanted, notes, lambda run: run.test_accuracy)
    costs = {run.config: cost for run in runs if (cost := read_cost(run.path)) is not None}
    mean_costs = {
        name: over_seeds(runs, lambda run, name=name: (costs.get(run.config) or {}).get(name), wanted)  # type: ignore[misc]
        for name in MEASURED
    }
    rows = [
        _row(config, panels, {name: cells[config] for name, cells in mean_costs.items()})
        for config in dict.fromkeys(map(setting, wanted))
    ]
    files = save(out, "table1", rows)
    hardware = sorted({f"{c['hardware']}, {c['threads']} thread(s)" for c in costs.values()})
    write_atomically(out / "table1.md", _markdown(panels, rows, hardware).encode())
    return [*files, out / "table1.md"]


def drop(panel: Panel, cell: Cell) -> float | None:
    """Accuracy that the dense network has more than these runs, a fraction; None without one of the two."""
    if panel.dense is None or panel.dense.mean is None or cell.mean is None:
        return None
    return panel.dense.mean - cell.mean


def _row(config: RunConfig, panels: Sequence[Panel], costs: Mapping[str, Cell]) -> dict[str, Any]:
    (panel,) = (p for p in panels if p.key == panel_of(config))
    points = [panel.flat[config.method]] if config.density is None else panel.curves[curve_of(config)]
    point = next(p for p in points if config.density in (None, p.density))
    cell = point.cell
    begin, train, final = ORDERS.get(config.method, ("", "", ""))
    return {
        **{name: getattr(config, name) for name in ("model", "dataset")},
        "method": curve_of(config),
        "density": config.density,
        "numbers_trained": point.numbers,
        "test_accuracy_mean": cell.mean,
        "test_accuracy_std": cell.std,
        "n": cell.n,
        "wanted": cell.wanted,
        "accuracy_drop": drop(panel, cell),
        "order_begin": begin,
        "order_step": train,
        "order_final": final,
        "batch_size": config.batch_size,
        **{name: costs[name].mean for name in MEASURED},
        "missing": cell.reason,
    }


def _markdown(panels: Sequence[Panel], rows: Sequence[Mapping[str, Any]], hardware: Sequence[str]) -> str:
    lines = []
    for panel in panels:
        densities = panel.densities
        lowest = densities[-1] if densities else None
        lines += [
            f"**{panel.title}, {panel.effort}**: test accuracy below the dense network's in points"
            + ("" if panel.dense is None else f" ({panel.dense}%)")
            + f"; costs at density {100 * (lowest or 1):g}%",
            "",
            "| method | "
            + " | ".join(f"{100 * d:g}%" for d in densities)
            + " | numbers | begin | CPU s | peak MB | step | CPU s | MB | final | kB |",
            "| --- |" + " --- |" * (len(densities) + 9),
        ]
        for method in dict.fromkeys([*panel.curves, *panel.flat, "dense"]):
            cells = {p.density: p.cell for p in panel.curves.get(method, [])}
            key = panel.model, panel.dataset, method
            own = [row for row in rows if (row["model"], row["dataset"], row["method"]) == key]
            if not own:
                continue
            cost = next((row for row in own if row["density"] in (lowest, None)), own[-1])
            drops = [_drop_text(panel, cells.get(d)) for d in densities]
            begin, step, final = ORDERS.get(method.partition(" ")[0], ("", "", ""))
            cells_of_costs = [
                _number(cost["numbers_trained"], 1, 0),
                *(
                    begin,
                    _number(cost["begin_cpu_seconds"], 1, 2),
                    _number(cost["begin_peak_bytes"], 1e-6, 0),
                ),
                *(step, _number(cost["step_cpu_seconds"], 1, 3), _number(cost["train_bytes"], 1e-6, 2)),
                *(final, _number(cost["final_bytes"], 1e-3, 1)),
            ]
            label = style(method).label
            if method in panel.flat and method != "dense":
                label += f": {_drop_text(panel, panel.flat[method].cell)}"
            lines.append("| " + " | ".join([label, *drops, *cells_of_costs]) + " |")
        lines.append("")
    lines += [f"Measured on {machine}." for machine in hardware]
    return "\n".join(lines) + "\n"


def _drop_text(panel: Panel, cell: Cell | None) -> str:
    if cell is None:
        return ""
    lost = drop(panel, cell)
    if lost is None:
        return "missing"
    text = f"{100 * lost:.1f}"
    return text if cell.std is None else f"{text} ± {100 * cell.std:.1f}"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "missing" if value is None else f"{value * scale:,.{digits}f}"
