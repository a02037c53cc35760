"""Replies of Flower's clients, checked before a strategy averages them. Flower itself is not imported."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from dctps.flat_state import check_trainable_state

_LOG = logging.getLogger("flwr")


class CheckedReplies:
    """A strategy of Flower's that sets aside what it could not average, and goes on with the other replies.

    Put it before the strategy, `class Checked(CheckedReplies, FedAvg): pass`, and give the network first:
    `Checked(model, fraction_evaluate=0.0)`. Each client that failed, did not answer in time, or sent other
    numbers than `trainable_state` of this network, or ones that are not finite, is a line in Flower's log. A
    round without a single sound reply leaves the network as it is.

    Args:
        model: made as the clients make theirs; only looked at.
        options: of the strategy.
    """

    weighted_by_key: str

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self._model = model
        self._asked: set[int] = set()

    def configure_train(self, *arguments: Any, **options: Any) -> list[Any]:
        """As the strategy does; who is asked is remembered."""
        messages = list(super().configure_train(*arguments, **options))  # type: ignore[misc]
        self._asked = {message.metadata.dst_node_id for message in messages}
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> Any:
        """As the strategy does, of the sound replies."""
        sound, silent = [], set(self._asked)
        for reply in replies:
            silent.discard(reply.metadata.src_node_id)
            if why := self._problem(reply):
                _LOG.warning("round %d: refused client %d: %s", server_round, reply.metadata.src_node_id, why)
            else:
                sound.append(reply)
        for client in sorted(silent):
            _LOG.warning("round %d: client %d did not answer in time", server_round, client)
        return super().aggregate_train(server_round, sound)  # type: ignore[misc]

    def _problem(self, reply: Any) -> str:
        """Why a reply cannot be averaged, in one line; empty if it can."""
        if reply.has_error():
            return " ".join(str(reply.error.reason).rpartition("Message: ")[2].split())[:300] or "it failed"
        arrays, metrics = (
            list(reply.content.array_records.values()),
            list(reply.content.metric_records.values()),
        )
        if len(arrays) != 1 or len(metrics) != 1:
            return (
                f"it sent {len(arrays)} records of arrays and {len(metrics)} of metrics: one each is averaged"
            )
        try:
            check_trainable_state(self._model, arrays[0].to_torch_state_dict())
        except (ValueError, TypeError) as error:
            return " ".join(str(error).split())[:300]
        weight = metrics[0].get(self.weighted_by_key)
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            return f"its {self.weighted_by_key!r} is {weight}: it must be a number of 0 or more"
        return ""
