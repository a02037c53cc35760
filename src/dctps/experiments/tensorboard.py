"""A run folder's metrics as an event file, which TensorBoard shows.

The file is a function of metrics.jsonl alone, apart from the run's beginning, which is when its config.json
was written. So the two cannot disagree, nothing is written twice when a run goes on, and a finished run can
be given its events at any time.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dctps.experiments.records import CONFIG, read_metrics
from dctps.files import write_atomically

EVENTS = "events.out.tfevents.0.dctps"


def write_events(folder: Path) -> None:
    """Bring the event file of a run folder up to its metrics.jsonl; without that file nothing is written.

    New events are appended to a file that is the beginning of what it should be, as TensorBoard may be
    reading it. Where TensorBoard is not installed, a ValueError says so.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415
    except ImportError:
        raise ValueError("events for TensorBoard need it: pip install dctps[tensorboard]") from None
    records = read_metrics(folder) if (folder / CONFIG).exists() else []
    if not records:
        return
    content = _to_events(records, (folder / CONFIG).stat().st_mtime, Event, Summary, RecordWriter)
    path = folder / EVENTS
    there = path.read_bytes() if path.exists() else b""
    if there and content.startswith(there):
        with path.open("rb+") as file:
            file.seek(len(there))
            file.write(content[len(there) :])
    else:
        write_atomically(path, content)


def _to_events(
    records: Sequence[dict[str, Any]], start: float, Event: Any, Summary: Any, RecordWriter: Any
) -> bytes:
    """The bytes of an event file: a scalar for each number of each record, dated by its `seconds`."""
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=start, file_version="brain.Event:2").SerializeToString())
    now = start
    for record in records:
        now += record["seconds"]
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
        ]
        event = Event(wall_time=now, step=record["epoch"], summary=Summary(value=scalars))
        writer.write(event.SerializeToString())
    return file.getvalue()
