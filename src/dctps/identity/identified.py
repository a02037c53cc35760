"""A module whose state names its linear map, and which looks at this state whenever it has changed."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.compiler import is_compiling

from dctps.identity.packed import digest_of, is_readable, pack, parse_spec, unbatched, unpack
from dctps.transforms.tables import constant_to_compilers, is_exporting, making_constants

# In place of a version: the content is to be looked at, or it came by `to_empty()` and is still to be filled.
_LOOK = -1
_UNFILLED = -2


class LinearMap(Protocol):
    """D or P, as far as it matters here."""

    @property
    def spec(self) -> dict[str, Any]:
        """JSON-ready arguments that rebuild it."""


M = TypeVar("M", bound=LinearMap)


class _Seen(NamedTuple):
    """The buffers as they were last looked at, and the map that they name."""

    support: Tensor | None
    identity: Tensor
    version: int | None
    checksum: bytes | None  # None: not known yet, on the meta device
    map: Any


class Identified(nn.Module, Generic[M]):
    """A module with a linear map that the buffer `identity` names: D of a layer, P of a hyperplane.

    A tensor that takes the place of `identity` or `support`, as in `functional_call`, is read and obeyed. A
    change in place is refused unless `seal()` announces it, or the content is the same as before: a moving
    average that follows a moving support makes just such a change, and mixes values of different weights.

    Attributes:
        identity: buffer, int64 (32,), or longer for a long name; see `identity.py`.
        last_map: the map of the module's own buffers, as last seen: without a look at the state.
    """

    identity: Tensor
    last_map: M
    _seen: _Seen  # the module's own
    _guest: _Seen  # those that last took their place

    @abstractmethod
    def _rebuild(self, spec: dict[str, Any]) -> M:
        """The map of a spec; ValueError where it does not fit this module."""

    def _check_support(self, support: Tensor) -> None:
        """Refuse a support that this module cannot have, with a ValueError."""

    def _is_same(self, one: M, other: M) -> bool:
        """Whether two maps have the same entries."""
        return one.spec == other.spec

    def _identify(self, linear: M, device: torch.device) -> None:
        """Make the buffer when the module is built; `seal` fills it."""
        # Zeros, as memory that is not filled may hold what a module wrote there that is gone.
        self.register_buffer("identity", torch.zeros_like(pack(linear.spec), device=device))
        self._record(linear, None)

    @torch.no_grad()
    def seal(self, linear: M | None = None) -> None:
        """Write down in the state which support the numbers belong to: after a change of it that is meant.

        Args:
            linear: the map; by default the one that the state names.

        Raises:
            ValueError: positions that are no support of this layer.
        """
        linear = self._own_map() if linear is None else linear
        support, checksum = self._support, None
        if is_readable(support if support is not None else self.identity):
            if support is not None:
                try:
                    self._check_support(support)
                except ValueError as error:
                    raise ValueError(f"{self._title()}: {error}") from None
            words = pack(linear.spec, digest_of(support))
            if self.identity.is_meta or words.shape != self.identity.shape:
                self.identity = words.to(self.identity.device if support is None else support.device)
            self.identity.copy_(words)
            checksum = unpack(words).checksum
        self._record(linear, checksum)

    def _current(self) -> M:
        """The map that the state names; O(1) while nothing has changed.

        Raises:
            ValueError: the state is not one that this library has written.
        """
        if is_compiling():
            self._settle()
            if self._buffers["identity"] is not self._seen.identity and not is_exporting():
                raise ValueError(
                    f"{self._title()}: functional_call with another state is not for torch.compile, to which "
                    f"the offset is a constant: call it outside, or pass parameters alone"
                )
            return self.last_map  # which compilers guard
        seen, buffers = self._seen, self._buffers
        support, identity = buffers.get("support"), buffers["identity"]
        if (
            support is seen.support
            and identity is seen.identity
            and _version(support, identity) == seen.version
        ):
            return seen.map  # type: ignore[no-any-return]
        return self._look(support, identity)  # type: ignore[arg-type]

    def differs_from(self, other: Identified[M]) -> bool:
        """Whether the map or the support of `other` is another than was last seen here."""
        other._current()
        theirs = other._guest if other._holds(other._guest) else other._seen
        return self._seen.checksum != theirs.checksum

    @constant_to_compilers
    def _settle(self) -> bool:
        """Look at the buffers while a compiler traces: not again in each call of its program."""
        self._look(self._support, self.identity)
        if self._holds(self._guest):  # they are here to stay
            self.last_map, self._seen = self._guest.map, self._guest
        return True

    def _look(self, support: Tensor | None, identity: Tensor) -> M:
        if any(t is not None and functorch.is_functorch_wrapped_tensor(t) for t in (support, identity)):
            return self._common(support, identity)
        if not is_readable(support, identity):
            support, identity = self._seen[:2]  # what an exporter's stand-ins stand for
            if not is_readable(support, identity):
                return self.last_map
        own = support is self._seen.support and identity is self._seen.identity
        seen, version = self._seen if own else self._guest, _version(support, identity)
        in_place = support is seen.support and identity is seen.identity
        if in_place and version == seen.version:
            return seen.map  # type: ignore[no-any-return]
        linear, checksum = self._read(support, identity)
        if in_place and seen.checksum not in (None, checksum):
            raise ValueError(
                f"{self._title()}: another network's support or offset was copied over its own, and its "
                f"values may belong to other weights: copy a network by load_state_dict(), average one whose "
                f"supports move by dctps.AveragedModel, and give every process the same seed"
            )
        seen = _Seen(support, identity, version, checksum, linear)
        if own:
            self.last_map, self._seen = linear, seen
        else:
            self._guest = seen
        return linear

    def _read(self, support: Tensor | None, identity: Tensor) -> tuple[M, bytes]:
        """The map that the buffers name, and their checksum."""
        try:
            with making_constants():
                content = unpack(identity)
                if digest_of(support) != content.digest:
                    if support is not None:
                        self._check_support(support)
                    raise ValueError(
                        "its support is not the one that was recorded: copy a network by load_state_dict(), "
                        "and call the layer's seal() after a change by hand"
                    )
            return self._named(content.spec), content.checksum
        except ValueError as error:
            raise ValueError(f"{self._title()}: {error}") from None

    def _common(self, support: Tensor | None, identity: Tensor) -> M:
        """The one map of all the networks that `torch.vmap` calls together."""
        identities = unbatched(identity)
        supports = [None] if support is None else unbatched(support)
        count = max(len(identities), len(supports))
        if min(len(identities), len(supports)) not in (1, count):
            raise ValueError(f"{self._title()}: torch.vmap has batched support and identity differently")
        repeated = (parts * (count // len(parts)) for parts in (supports, identities))
        maps = [self._read(*pair)[0] for pair in zip(*repeated, strict=True)]
        if not all(self._is_same(maps[0], other) for other in maps):
            raise ValueError(
                f"{self._title()}: torch.vmap calls networks whose fixed parts differ ({maps[0].spec} and "
                f"others), which no batched call can: call the networks one by one"
            )
        return maps[0]

    def _named(self, spec: dict[str, Any]) -> M:
        """The map of a spec, which is not made again where it is the present one."""
        return self.last_map if spec == self.last_map.spec else self._rebuild(spec)

    def _own_map(self) -> M:
        """The map that `identity` names, whatever the support; the last one where it is not filled."""
        with contextlib.suppress(ValueError):
            if is_readable(self.identity):
                return self._named(unpack(self.identity).spec)
        return self.last_map

    def _record(self, linear: M, checksum: bytes | None) -> None:
        support, identity = self._support, self.identity
        self.last_map = linear
        self._seen = self._guest = _Seen(support, identity, _version(support, identity), checksum, linear)

    @property
    def _support(self) -> Tensor | None:
        return self._buffers.get("support")

    def _holds(self, seen: _Seen) -> bool:
        return self._support is seen.support and self.identity is seen.identity

    def _title(self) -> str:
        name = getattr(self.last_map, "layer", "")
        return f"layer {name!r}" if name else f"this {type(self).__name__}"

    def train(self, mode: bool = True) -> Self:
        """As of any module; the buffers are then looked at again, as writing to `.data` leaves no trace."""
        if mode != self.training and self._seen.version != _UNFILLED:
            self._seen = self._seen._replace(version=_LOOK)
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's tensors count their changes anew.
        version = _UNFILLED if self._seen.version == _UNFILLED else _LOOK
        return {**self.__dict__, "_seen": self._seen._replace(version=version), "_guest": self._seen}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        known = self._seen.checksum if self._holds(self._seen) else None
        was_meta = self.identity.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self._holds(self._seen):
            support, identity = self._support, self.identity
            self._seen = self._guest = _Seen(support, identity, _UNFILLED, known, self.last_map)
            if not was_meta:  # else it is to_empty(), whose memory may hold what another module wrote
                with contextlib.suppress(ValueError):  # after to_empty() it is refused when it is used
                    self._look(support, identity)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if (
            self._holds(self._seen) and self._seen.version != _UNFILLED
        ):  # tensors are listed to be filled, too
            self._current()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse what is not this module's to take, saying what to do; else load, and take over the map."""
        try:
            linear = self._incoming(state_dict, prefix)
        except ValueError as error:
            title = f"layer {prefix[:-1]!r}" if prefix else self._title()
            rest[-1].append(f"{title}: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if linear is not None:
            self.seal(linear)

    def _incoming(self, state_dict: dict[str, Any], prefix: str) -> M | None:
        """The map that a state dict names; None where it has neither map nor support."""
        support, identity = (state_dict.get(prefix + key) for key in ("support", "identity"))
        described = state_dict.pop(prefix + "_extra_state", None)  # of dctps 0.1: the spec alone
        linear = self.last_map
        if identity is not None and is_readable(support, identity):
            content = unpack(identity)
            if content.digest != digest_of(self._support if support is None else support):
                raise ValueError("the support of the state dict is not the one that it was saved with")
            linear = self._named(content.spec)
        elif identity is None and described is not None:
            linear = self._named(parse_spec(bytes(described.tolist())))
            identity = state_dict[prefix + "identity"] = torch.empty_like(
                pack(linear.spec), device=self.identity.device
            )
        elif identity is None and support is None:
            return None
        if identity is not None and identity.shape != self.identity.shape:  # of a layer of a longer name
            self.identity = self.identity.new_empty(identity.shape)
        return linear


def _version(support: Tensor | None, identity: Tensor) -> int | None:
    """A number that grows with each change in place; None for inference tensors, which count none."""
    try:
        return identity._version if support is None else support._version + identity._version
    except RuntimeError:
        return None
