"""What an offset is worth: the finished runs of a study as a file, and the tables of docs/worth.md from it.

    dctps sweep --file benchmarks/worth/NAME.toml --out runs/NAME
    python benchmarks/worth.py runs/NAME [runs/OTHER ...]

Writes benchmarks/results/worth-NAME.csv: a row for each finished run, with what the studies vary, all numbers
that it trained, and what it reached; rows of other runs stay. Without a folder only the tables are filled.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from markdown_tables import table

from dctps.analysis.runs import Run, read_runs
from dctps.analysis.style import in_order, style, to_csv
from dctps.benchmarking.record import commit, processor
from dctps.experiments.config import RunConfig
from dctps.files import write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, str]
PANEL = ("model", "dataset", "epochs", "train_images", "image_size")  # what the runs of a plot have in common

FIELDS = (
    "model", "dataset", "method", "density", "seed", "batch_seed", "epochs", "train_images", "image_size",
    "criterion", "allocation", "alpha", "init", "zero_head", "lr", "schedule", "weight_decay",
)  # fmt: skip


def rows_of(runs: Sequence[Run], where: dict[str, str]) -> list[dict[str, object]]:
    """A row for each run."""
    return [
        {field: getattr(run.config, field) for field in FIELDS}
        | {"weights_trained": run.weights_trained, "numbers_trained": run.numbers_trained}
        | {"test_accuracy": run.test_accuracy, "train_loss": round(run.records[-1]["train_loss"], 4)}
        | where
        for run in runs
    ]


def collect(folder: Path) -> None:
    """Write the finished runs of a folder."""
    runs = [run for run in read_runs(folder) if run.summary is not None]
    found = rows_of(runs, {"commit": commit(), "hardware": processor()})
    path = RESULTS / f"worth-{folder.name}.csv"
    made = {key_of(row) for row in found}
    kept = [row for row in read(folder.name) if key_of(row) not in made] if path.exists() else []
    write_atomically(path, to_csv([*kept, *found]))
    print(f"{path.relative_to(ROOT)}: {len(found)} runs")


def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """What makes a row's run the run that it is, as a file has it."""
    return tuple("" if row.get(field) is None else str(row.get(field)) for field in FIELDS)


def key_of_config(config: RunConfig) -> tuple[str, ...]:
    """The same of a run that may not be there yet."""
    return key_of({field: getattr(config, field) for field in FIELDS})


def read(name: str, **wanted: object) -> list[Row]:
    """The rows of a study whose fields are as wanted."""
    with (RESULTS / f"worth-{name}.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    return [row for row in rows if all(_same(row.get(key, ""), value) for key, value in wanted.items())]


def _same(text: str, value: object) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool) and text:
        return abs(float(text) - value) < 1e-12
    return text == ("" if value is None else str(value))


def cell(rows: Sequence[Row]) -> str:
    """Mean and standard deviation of the accuracy, and how many runs they are of."""
    if not rows:
        return ""
    found = [100 * float(row["test_accuracy"]) for row in rows]
    spread = f" ± {stdev(found):.1f}" if len(found) > 1 else ""
    return f"{mean(found):.1f}%{spread} ({len(found)})"


def grouped(rows: Iterable[Row], label: Callable[[Row], tuple[str, ...]]) -> dict[tuple[str, ...], list[Row]]:
    """The rows of each label, in the order met."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(label(row), []).append(row)
    return found


def pivot(
    rows: Iterable[Row], down: Callable[[Row], tuple[str, ...]], across: str, heads: Sequence[str]
) -> str:
    """A table of `cell`s: a line for each value of `down`, in the order met, a column for each `across`."""
    rows = list(rows)
    columns = list(dict.fromkeys(row[across] for row in rows))
    order = sorted(columns, key=float) if across in ("lr", "density") else columns
    lines = [
        [*names, *(cell([row for row in found if row[across] == column]) for column in order)]
        for names, found in grouped(rows, down).items()
    ]
    return table([*heads, *(f"{across} {column}" for column in order)], lines)


def best(rows: Iterable[Row]) -> list[list[Row]]:
    """Of each network, method and density the setting with the best mean: the rows of its seeds.

    One with three seeds goes before one with fewer.
    """
    rows = list(rows)
    settings = grouped(rows, lambda row: tuple(row[name] for name in FIELDS if "seed" not in name))
    found: dict[tuple[str, ...], list[Row]] = {}
    for seeds in settings.values():
        point = tuple(seeds[0][name] for name in (*PANEL, "method", "density"))
        found[point] = max(found.get(point, []), seeds, key=lambda rows: (min(len(rows), 3), accuracy(rows)))
    methods = in_order({row["method"] for row in rows})
    return sorted(found.values(), key=lambda seeds: (methods.index(seeds[0]["method"]), -density(seeds[0])))


def foremost(rows: Iterable[Row], name: str, key: Callable[[Sequence[Row]], float]) -> list[Row]:
    """Of settings that differ in the field `name` alone the seeds of the one whose `key` is the largest."""
    others = [field for field in FIELDS if "seed" not in field and field != name]
    found = []
    for setting in grouped(rows, lambda row: tuple(row[field] for field in others)).values():
        found += max(grouped(setting, lambda row: (row[name],)).values(), key=key)
    return found


def accuracy(rows: Sequence[Row]) -> float:
    """Mean over the runs, a fraction; below all others where there are none."""
    return mean(float(row["test_accuracy"]) for row in rows) if rows else -1.0


def every() -> str:
    """LeNet-5: each method at its best at each density, beside dense networks of as many numbers."""
    rows = [row for seeds in best(read("lenet")) for row in seeds if row["density"]]
    return pivot(rows, lambda row: (style(row["method"]).label,), "density", ["method"])


def rates() -> str:
    """LeNet-5: what was trained at several rates, each method at each density."""
    names = {"dctps": "`dct`", "random-epl": "Random (EPL)", "synflow": "SynFlow"}

    def down(row: Row) -> tuple[str, ...]:
        begins = "D" if "dctps" in row["method"] else row["init"]
        return names[row["method"]], begins, f"{100 * float(row['density']):.3g}%"

    rows = read("lenet", allocation="epl", alpha="one", weight_decay=5e-4)
    rows += read("lenet", allocation="global")
    rows = [row for row in rows if row["method"] in names and row["criterion"] != "offset-gradient"]
    tried: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        tried.setdefault(down(row), set()).add(row["lr"])
    rows = [row for row in rows if len(tried[down(row)]) > 1]
    rows.sort(key=lambda row: (list(names).index(row["method"]), -float(row["density"]), row["init"]))
    return pivot(rows, down, "lr", ["S on", "begins with", "density"])


def allocations() -> str:
    """LeNet-5: where the values are."""
    rows = [
        row
        for row in read("lenet", method="dctps", alpha="one", weight_decay=5e-4, lr=6e-3)
        if row["density"] in ("0.005", "0.02")
    ]
    return pivot(rows, lambda row: (row["allocation"],), "density", ["allocation"])


def compared(rows: Sequence[Row], by: str = "model") -> str:
    """Each method at its rate, its seeds together, of each network and density the most accurate first.

    Or of each number of epochs, in place of networks, with `by="epochs"`.
    """
    order = sorted(
        grouped(rows, lambda row: (row[by], *_named(row))).items(),
        key=lambda entry: (entry[0][0], -density(entry[1][0]), -accuracy(entry[1])),
    )
    first = "network" if by == "model" else by
    heads = (first, "method", "begins with", "rate", "density", "trained numbers", "test accuracy")
    one = len({row[by] for row in rows}) == 1  # which stands above the table
    return table(heads[one:], ([*names[one:], cell(seeds)] for names, seeds in order))


def deep() -> list[Row]:
    """VGG19, CIFAR-10, each at its best rate; under `sdct` a classifier at zero gains nothing."""
    rows = foremost(read("vgg19-16", epochs=15), "lr", accuracy)
    return [row for row in rows if row["method"] != "sdctps" or row["zero_head"] == "False"]


def full_size() -> list[Row]:
    """VGG19 at 32 x 32 pixels, each trained as long as it was."""
    return foremost(read("vgg19-32"), "epochs", lambda seeds: float(seeds[0]["epochs"]))


def residual() -> list[Row]:
    """ResNet-20: the recipe `few`, and its rivals, as long; SynFlow's two rates are level."""
    rows = read("resnet20") + read("few", model="resnet20", epochs=10, zero_head=True)
    rows = [row for row in rows if row["allocation"] != "narrow"]  # which changes nothing
    return [row for row in rows if row["method"] != "synflow" or row["lr"] == "0.02"]


def compared_networks() -> list[Row]:
    """The networks that were trained by several methods at several densities, with the usual allocations."""
    rows = read("lenet") + deep() + residual() + read("deeper", model="mobilenetv2")
    return [row for row in rows if row["allocation"] != "narrow"]  # which few methods were given


def tried() -> str:
    """What did not gain, by what is not as usual."""
    usual = {
        "criterion": ("random", "synflow"), "allocation": ("epl", "global"), "alpha": ("one",),
        "schedule": ("onecycle",), "weight_decay": ("0.0005",),
    }  # fmt: skip

    def changed(row: Row) -> tuple[str, ...]:
        other = [
            f"{name.replace('_', ' ')} {row[name]}"
            for name, values in usual.items()
            if row[name] not in values
        ]
        return row["model"], row["method"], *(other or ["a scale for each row, 73 values"])

    heads = ("network", "method", "tried", "test accuracy")
    found = grouped(read("tried"), changed).items()
    return table(heads, ([*names, cell(rows)] for names, rows in found))


def thin() -> str:
    """Small dense networks at the better of two rates."""
    rows = sorted((seeds[0] for seeds in best(read("thin"))), key=lambda row: int(row["numbers_trained"]))
    lines = (
        [row["model"], f"{int(row['numbers_trained']):,}", f"{float(row['lr']):g}", cell([row])]
        for row in rows
    )
    return table(("network", "numbers", "rate", "test accuracy"), lines)


def density(row: Row) -> float:
    """Of the runs that have one; below all others for those that do not."""
    return float(row["density"]) if row["density"] else -1.0


def _named(row: Row) -> tuple[str, ...]:
    begins = "D" if "dctps" in row["method"] else row.get("init", "dense")
    begins = "classifier at 0" if row["zero_head"] == "True" else begins
    without = "none" if row["weights_trained"] == "0" else "all"
    density = f"{100 * float(row['density']):.3g}%" if row["density"] else without
    method = row["method"]
    method += " on synflow" if method == "rigl" and row["criterion"] == "synflow" else ""
    method += ", narrow" if row["allocation"] == "narrow" else ""
    return method, begins, f"{float(row['lr']):g}", density, f"{int(row['numbers_trained']):,}"


def recipes() -> str:
    """The recipe `few` beside `paper`."""
    rows = sorted(read("few"), key=lambda row: (row["model"], -float(row["density"]), int(row["epochs"])))

    def down(row: Row) -> tuple[str, ...]:
        recipe = "few" if row["zero_head"] == "True" else "few, classifier as the others"
        recipe += "" if row["lr"] == "0.02" else f", rate {row['lr']}"
        recipe = "paper" if row["schedule"] == "constant" else recipe
        return row["model"], f"{100 * float(row['density']):.3g}%", row["numbers_trained"], recipe

    return pivot(rows, down, "epochs", ["network", "density", "trained numbers", "recipe"])


def left() -> str:
    """What is left of a batch at initialisation."""
    runs = json.loads((RESULTS / "signal_left.json").read_text())["runs"]
    found: dict[tuple[str, str], list[list[float]]] = {}
    for run in runs:
        convolutions = run["layers"][:-1]
        middle, last = convolutions[len(convolutions) // 2], convolutions[-1]
        numbers = [run["loss"], middle["effective_channels"], last["effective_channels"], last["likeness"]]
        found.setdefault((run["network"], run["offset"]), []).append(numbers)
    heads = ("network", "D", "first loss", "effective channels, middle", "last", "likeness of two images")
    lines = [
        [*names, f"{mean(loss):.1f}", f"{mean(middle):.0f}", f"{mean(last):.0f}", f"{mean(alike):.2f}"]
        for names, seeds in found.items()
        for loss, middle, last, alike in [zip(*seeds, strict=True)]
    ]
    return table(heads, lines)


def hardware() -> str:
    """Where the runs were made."""
    found = {row["hardware"] for name in STUDIES for row in read(name)}
    return f"Measured on {'; '.join(sorted(found))}; one thread a run. Each row of the files has its commit."


STUDIES = "lenet", "vgg19-16", "vgg19-32", "resnet20", "deeper", "cifar100", "few", "thin", "tried"
TABLES = {
    "every": every, "rates": rates, "allocations": allocations,
    "deep": lambda: compared(deep()), "full-size": lambda: compared(full_size(), by="epochs"),
    "residual": lambda: compared(residual()), "deeper": lambda: compared(read("deeper")),
    "thin": thin, "tried": tried, "recipes": recipes, "hardware": hardware,
}  # fmt: skip


if __name__ == "__main__":
    for given in sys.argv[1:]:
        collect(Path(given))
