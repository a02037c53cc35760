"""Small run folders that look like real ones."""

import json

import pytest

from dctps.experiments.config import resolve, to_dict
from dctps.sweeps.grid import grid


@pytest.fixture
def write_run():
    """Write a finished run folder with given accuracies after each epoch."""

    def write(root, config, val, test=None, *, nnz=100, rows=(), levels=None):
        config = resolve(config)
        (name,) = grid({k: v for k, v in to_dict(config).items() if v is not None})
        path = root / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(to_dict(config)))
        records = [
            {"epoch": i, "val_accuracy": v, "test_accuracy": v} | ({"level": levels[i - 1]} if levels else {})
            for i, v in enumerate(val, 1)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        report = {"trainable": {"values": nnz, "alpha": 5, "bias": 7}, "rows": list(rows)}
        summary = {"last_test_accuracy": val[-1] if test is None else test, "report": report}
        (path / "summary.json").write_text(json.dumps(summary))
        return path

    return write
