"""A session and the folder that it is saved in: how a run goes on, is saved, and ends."""

from __future__ import annotations

from collections.abc import Callable

import dctps
from dctps.experiments.folder import BACKENDS, RunFolder
from dctps.experiments.records import BEST, LAST, Record
from dctps.experiments.session import Session
from dctps.experiments.signals import Stopped, StopRequest
from dctps.experiments.state import State, StateError
from dctps.product.machine import follow
from dctps.training import Processes


class SavedSession:
    """A session and its folder, which process 0 holds: steps 2 to 5 of `dctps.experiments.folder`.

    `environment` says where this process runs; `backends` are the layers' paths, if they are not the rule's.
    """

    def __init__(
        self,
        session: Session,
        folder: RunFolder,
        request: StopRequest,
        environment: Record,
        processes: Processes | None = None,
        backends: Record | None = None,
    ) -> None:
        self.session, self.folder, self.request = session, folder, request
        self.processes, self.backends = processes or Processes(), backends
        self.environments = [environment]
        self.saved = session.position

    def resume(self, data: Record, note: Callable[[str], None]) -> None:
        """Go on where an earlier process saved the run on `data`, if one did."""
        state = self.processes.from_first(lambda: self._begin(data))
        if state is None:
            return
        here = self.environments[0]
        try:
            self.session.load_state(state["session"])
            earlier = [dict(environment) for environment in state["environments"]]
            if (profile := earlier[-1].get("profile")) is not None:  # choose the same paths as before
                here = {**here, "profile": follow(profile, self.session.device.type)}
            changes = ", ".join(
                f"{name} {earlier[-1].get(name)} before and {value} now"
                for name, value in here.items()
                if earlier[-1].get(name) != value
            )
        except (StateError, KeyError, TypeError, ValueError, IndexError) as error:
            raise self.folder.damaged(error) from None
        self.saved = self.session.position
        self.folder.saved_where = self.session.where
        note(f"{self.folder.path} continues {self.session.where}")
        if changes:
            note(f"{changes}: the run stays valid, but it is not bit for bit the one of a single place")
        self.environments = [*earlier, here] if changes else earlier
        # A process that was killed may have saved the state and not yet what follows from it.
        self._publish(best_too=True)

    def _begin(self, data: Record) -> State | None:
        state = self.folder.begin(data)
        if self.backends is not None and not (self.folder.path / BACKENDS).exists():
            self.folder.save_backends(self.backends)
        return state

    def complete(
        self, checkpoint_interval: int | None, progress: bool, on_epoch: Callable[[Record], None]
    ) -> None:
        """Train what is left, and finish the run."""

        def between() -> None:
            # A signal need not reach all processes before the same step.
            self.request.number = self.processes.largest(self.request.number or 0) or None
            steps = self.session.position[1]
            if checkpoint_interval is not None and steps > 0 and steps % checkpoint_interval == 0:
                self.save()
            self.stop_if_asked()

        while not self.session.finished:
            record = self.session.train_epoch(progress=progress, between=between)
            self.save_epoch(record)
            on_epoch(record)
        if self.processes.rank == 0:
            self.finish()
        if self.request.number is not None:
            raise Stopped(self.request.number, f"stopped; {self.folder.path} is finished")

    def stop_if_asked(self) -> None:
        """Save the session and raise `Stopped` if a signal has come."""
        if self.request.number is not None:
            self.save()
            saved = f"saved {self.session.where}: the same command continues from there"
            raise Stopped(self.request.number, f"stopped; {self.folder.path} is {saved}")

    def save_epoch(self, record: Record) -> None:
        """Write all files of an epoch that has just ended with `record`."""
        self.save()
        self._publish(best_too=self.session.best == record)

    def save(self) -> None:
        """Write the state, unless it has been written at this position."""
        if self.saved != self.session.position and self.processes.rank == 0:
            state = {"session": self.session.state(), "environments": self.environments}
            self.folder.save_state(state, self.session.where)
        self.saved = self.session.position

    def finish(self) -> None:
        """Write the summary of a run whose epochs are done; it is then finished."""
        records = self.session.records
        last = records[-1]
        chosen = self.session.best or {"epoch": None, "val_accuracy": None, "test_accuracy": None}
        report = dctps.report(self.session.model).to_dict()
        # What this process has cached so far, which says something about the process and not about the run.
        del report["shape_table_bytes"]
        summary = {
            "last_epoch": last["epoch"],
            "last_test_accuracy": last["test_accuracy"],
            **{f"best_{name}": chosen[name] for name in ("epoch", "val_accuracy", "test_accuracy")},
            "report": report,
            "seconds": sum(record["seconds"] for record in records),
            **self.environments[-1],
            "earlier_environments": self.environments[:-1],
        }
        self.folder.finish(summary)

    def _publish(self, *, best_too: bool) -> None:
        """Write what follows from the saved state."""
        epochs, steps = self.session.position
        if self.processes.rank > 0 or not epochs:
            return
        self.folder.save_metrics(self.session.records)
        if not steps:
            self.folder.save_model(self.session.model, LAST, epochs)
        best, model = self.session.best, self.session.best_model() if best_too else None
        if best is not None and model is not None:
            self.folder.save_model(model, BEST, best["epoch"])
