"""A session and the folder that it is saved in: how a run goes on, is saved, and ends."""

from __future__ import annotations

from collections.abc import Callable

import torch

import dctps
from dctps.experiments.folder import BEST, LAST, RunFolder
from dctps.experiments.records import Record
from dctps.experiments.session import Session
from dctps.experiments.signals import Stopped, StopRequest
from dctps.experiments.state import State, StateError
from dctps.product.machine import follow
from dctps.training import Processes


class Work:
    """A session and the locked folder that it is saved in: steps 2 to 5 of `dctps.experiments.folder`."""

    def __init__(
        self,
        session: Session,
        folder: RunFolder,
        request: StopRequest,
        environment: Record,
        processes: Processes,
        backends: Record | None,
    ) -> None:
        self.backends = backends
        self.session, self.folder, self.request = session, folder, request
        self.processes = processes
        self.environments = [environment]
        self.saved = session.position

    def resume(self, data: Record, note: Callable[[str], None]) -> None:
        """Go on where an earlier process saved the run on `data`, if one did."""
        state = self.processes.from_first(lambda: self._begin(data))
        if state is None:
            return
        try:
            self.session.load_state(state["session"])
            earlier = [dict(environment) for environment in state["environments"]]
            self._follow(earlier[-1].get("profile"))
            changes = _changes(earlier[-1], self.environments[0])
        except (StateError, KeyError, TypeError, ValueError, IndexError) as error:
            raise self.folder.damaged(error) from None
        self.saved = self.session.position
        self.folder.resumed(self.session.where)
        note(f"{self.folder.path} continues {self.session.where}")
        if changes:
            note(f"{changes}: the run stays valid, but it is not bit for bit the one of a single place")
        self.environments = earlier + self.environments if changes else earlier
        # A process that was killed may have saved the state and not yet what follows from it.
        self.publish(best_too=True)

    def _follow(self, profile: str | None) -> None:
        """Choose paths by the profile that the run recorded, if there is one, so that it repeats."""
        if profile is not None:
            device = torch.device(self.environments[0]["device"]).type
            self.environments[0] = {**self.environments[0], "profile": follow(profile, device)}

    def _begin(self, data: Record) -> State | None:
        state = self.folder.begin(data)
        if self.backends is not None and self.folder.backends() is None:
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
            due = checkpoint_interval is not None and steps > 0 and steps % checkpoint_interval == 0
            if (due or self.request.number is not None) and self.session.position != self.saved:
                self.save()
            self.stop_if_asked(f"saved {self.session.where}: the same command continues from there")

        while not self.session.finished:
            record = self.session.train_epoch(progress=progress, between=between)
            self.save_epoch(record)
            on_epoch(record)
        if self.processes.rank == 0:
            self.folder.finish(self.summary())
        self.stop_if_asked("finished")

    def save_epoch(self, record: Record) -> None:
        """Write all that an epoch leaves, `record` of it among that."""
        self.save()
        self.publish(best_too=self.session.best == record)

    def save(self) -> None:
        """Write the state."""
        self.saved = self.session.position
        if self.processes.rank > 0:
            return
        state = {"session": self.session.state(), "environments": self.environments}
        self.folder.save_state(state, self.session.where)

    def publish(self, *, best_too: bool) -> None:
        """Write what follows from the saved state."""
        if self.processes.rank > 0:
            return
        epochs, steps = self.session.position
        if epochs:
            self.folder.save_metrics(self.session.records)
        if epochs and not steps:
            self.folder.save_model(self.session.model, LAST, epochs)
        best, model = self.session.best, self.session.best_model()
        if best_too and best is not None and model is not None:
            self.folder.save_model(model, BEST, best["epoch"])

    def stop_if_asked(self, standing: str) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.request.number is not None:
            raise Stopped(self.request.number, f"stopped; {self.folder.path} is {standing}")

    def summary(self) -> Record:
        """What summary.json holds."""
        records = self.session.records
        last = records[-1]
        chosen = self.session.best or {"epoch": None, "val_accuracy": None, "test_accuracy": None}
        report = dctps.report(self.session.model).to_dict()
        # What this process has cached so far, which says something about the process and not about the run.
        del report["shape_table_bytes"]
        return {
            "last_epoch": last["epoch"],
            "last_test_accuracy": last["test_accuracy"],
            "best_epoch": chosen["epoch"],
            "best_val_accuracy": chosen["val_accuracy"],
            "best_test_accuracy": chosen["test_accuracy"],
            "report": report,
            "seconds": sum(record["seconds"] for record in records),
            **self.environments[-1],
            "earlier_environments": self.environments[:-1],
        }


def _changes(before: Record, now: Record) -> str:
    return ", ".join(
        f"{name} {before.get(name)} before and {now[name]} now"
        for name in now
        if before.get(name) != now[name]
    )
