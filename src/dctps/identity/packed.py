"""Which linear map and which support a module's numbers belong to, as a tensor of one length.

It is a whole number of 256 bytes, as int64 words, because no average in floating point leaves those whole:

    checksum of the rest (16 bytes) | digest of the support (16 bytes) | spec of the map, as JSON | zeros
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch as functorch

_BLOCK = 256
_HASH = 16
_SPEC = 128  # bytes of a spec beside the layer's name; a longer one takes another block


class Identity(NamedTuple):
    """What such a tensor says.

    Attributes:
        checksum: of all the rest, 16 bytes.
        digest: of the support, 16 bytes.
        spec: of the map.
    """

    checksum: bytes
    digest: bytes
    spec: dict[str, Any]


def pack(spec: dict[str, Any], digest: bytes = bytes(_HASH)) -> Tensor:
    """The tensor, int64 on the CPU; its length depends on the layer's name, and on no seed below 2^128."""
    text = json.dumps(spec).encode()
    room = 2 * _HASH + max(len(text), _SPEC + len(json.dumps(spec.get("layer", ""))))
    body = (digest + text).ljust(-(-room // _BLOCK) * _BLOCK - _HASH, b"\0")
    return torch.frombuffer(bytearray(_hash(body) + body), dtype=torch.int64)


def unpack(identity: Tensor) -> Identity:
    """What the tensor says.

    Raises:
        ValueError: it is not whole.
    """
    raw = b""
    if identity.dtype == torch.int64 and identity.dim() == 1:
        raw = identity.detach().cpu().contiguous().numpy().tobytes()
    if len(raw) <= 2 * _HASH or _hash(raw[_HASH:]) != raw[:_HASH]:
        raise ValueError(
            "its support and identity were averaged or cast as numbers, or come from to_empty() and are not "
            "filled: average a network by dctps.AveragedModel (or with use_buffers=False while its supports "
            "stay), and fill or mend one by load_state_dict()"
        )
    return Identity(raw[:_HASH], raw[_HASH : 2 * _HASH], parse_spec(raw[2 * _HASH :].rstrip(b"\0")))


def parse_spec(text: bytes) -> dict[str, Any]:
    """A spec from JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        spec = json.loads(text)
    except ValueError:
        spec = None
    if not isinstance(spec, dict):
        raise ValueError(
            "what the state says of its offset or projection is unreadable: load another copy of it"
        )
    return spec


def digest_of(support: Tensor | None) -> bytes:
    """16 bytes that stand for a support, or for none.

    Raises:
        ValueError: it is no list of int64 positions.
    """
    if support is None:
        return bytes(_HASH)
    if support.dtype != torch.int64 or support.dim() != 1:
        raise ValueError(f"a support is int64 positions (nnz,), got {support.dtype} {tuple(support.shape)}")
    return _hash(support.detach().cpu().contiguous().numpy().tobytes())


def is_readable(*tensors: Tensor | None) -> bool:
    """Whether they are real tensors: neither on the meta device nor a tracer's stand-ins."""
    return all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta) for t in tensors)


def unbatched(tensor: Tensor) -> list[Any]:
    """The tensors that one of `torch.vmap` stands for."""
    if not functorch.is_functorch_wrapped_tensor(tensor):
        return [tensor]
    inner = functorch.get_unwrapped(tensor)
    is_batch = functorch.is_batchedtensor(tensor)
    parts = inner.unbind(functorch.maybe_get_bdim(tensor)) if is_batch else (inner,)
    return [one for part in parts for one in unbatched(part)]


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_HASH).digest()
