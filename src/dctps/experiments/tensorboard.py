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

    What is there is added to where it is the beginning of what should be: TensorBoard may be reading it.

    Args:
        folder: of a run, also while that goes on.

    Raises:
        ValueError: TensorBoard is missing; as `RunFolderError`, metrics.jsonl cannot be read.
        OSError: the folder cannot be written.
    """
    _proto()
    try:
        start = (folder / CONFIG).stat().st_mtime
    except FileNotFoundError:
        return
    if not (records := read_metrics(folder)):
        return
    content, path = to_events(records, start), folder / EVENTS
    there = path.read_bytes() if path.exists() else b""
    if there and content.startswith(there):
        with path.open("rb+") as file:
            file.seek(len(there))
            file.write(content[len(there) :])
    else:
        write_atomically(path, content)


def to_events(records: Sequence[dict[str, Any]], start: float) -> bytes:
    """The bytes of an event file: a scalar for each number of each record, under its name and epoch.

    Args:
        records: of metrics.jsonl; an epoch is dated by the `seconds` up to its end.
        start: of the run, in seconds since 1970.
    """
    Event, Summary, RecordWriter = _proto()
    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=start, file_version="brain.Event:2").SerializeToString())
    now = start
    for record in records:
        now += record["seconds"]
        numbers = {
            name: value
            for name, value in record.items()
            if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        summary = Summary(value=[Summary.Value(tag=name, simple_value=x) for name, x in numbers.items()])
        writer.write(Event(wall_time=now, step=record["epoch"], summary=summary).SerializeToString())
    return file.getvalue()


def _proto() -> tuple[Any, Any, Any]:
    """TensorBoard's messages and its writer of records.

    Raises:
        ValueError: it is missing.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415
    except ImportError:
        raise ValueError("events for TensorBoard need it: pip install dctps[tensorboard]") from None
    return Event, Summary, RecordWriter
