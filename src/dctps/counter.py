"""Counter-based random numbers: the same on every device, thread count, version and machine.

Draw `i` of a stream is a pure function of `(key, i)`, so any part of a stream can be made alone and
in any order. The definition (docs/generator.md gives it byte by byte, with golden values):

    key(seed, name, purpose) = BLAKE2b-64 of the text "seed/name/purpose"
    bits(key, i)             = SplitMix64's output i + 1 from the state `key`
    uniform(key, i)          = (bits >> 11) + 1/2, times 2^-53: in (0, 1)
    normal(key, i)           = the standard normal quantile of uniform(key, i)
    sample(key, k, n)        = the first k distinct values of (bits(key, i) >> 1) mod n, i = 0, 1, ...
    permutation(key, n)      = the order that sorts bits(key, i) >> 1, i < n, ties to the smaller i;
                               the p-th of several over n sorts draws p n, ..., p n + n - 1

Everything is done in 64-bit integers modulo 2^64, which torch's int64 gives on every device.

Reference: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dctps.arguments import whole

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def derive_key(seed: int, name: str, purpose: str) -> int:
    """The 64-bit key of one stream: BLAKE2b-64 of `"{seed}/{name}/{purpose}"`, little-endian.

    Args:
        seed: the user's seed, any integer.
        name: whose draws these are, usually a layer's qualified name.
        purpose: what they are for, such as `"support"`; holds no slash, so that keys cannot collide.
    """
    text = f"{whole('seed', seed)}/{name}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def bits(key: int, counter: Tensor) -> Tensor:
    """64 random bits per counter, `mix(key + (i + 1) * gamma)`, as int64 of the counter's shape.

    Args:
        key: from `derive_key`.
        counter: int64, any shape, entries >= 0.
    """
    z = (counter + 1) * _signed(_GAMMA) + _signed(key)
    z = (z ^ _shift_right(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MIX_2)
    return z ^ _shift_right(z, 31)


def uniform(key: int, counter: Tensor) -> Tensor:
    """Uniform draws in the open interval (0, 1), float64, one per counter."""
    return (_shift_right(bits(key, counter), 11).to(torch.float64) + 0.5) * 2.0**-53


def normal(key: int, counter: Tensor) -> Tensor:
    """Standard normal draws, float64, one per counter, by inversion."""
    draws: Tensor = torch.special.ndtri(uniform(key, counter))
    return draws


def signs(key: int, n: int, *, device: torch.device | str | None = None) -> Tensor:
    """`n` fair signs, float64, each -1 or +1: the top bit of draw i."""
    draws = bits(key, torch.arange(n, device=device))
    return 1.0 - 2.0 * (draws < 0).to(torch.float64)


def permutation(key: int, n: int, *, device: torch.device | str | None = None) -> Tensor:
    """A uniform permutation of 0..n-1, int64."""
    return permutations(key, 1, n, device=device)[0]


def permutations(key: int, count: int, n: int, *, device: torch.device | str | None = None) -> Tensor:
    """`count` permutations of 0..n-1, int64 (count, n), the p-th from draws p n, ..., p n + n - 1."""
    draws = _shift_right(bits(key, torch.arange(count * n, device=device)), 1)
    return torch.sort(draws.reshape(count, n), stable=True).indices


def sample(key: int, k: int, n: int, *, device: torch.device | str | None = None) -> Tensor:
    """`k` of the numbers 0..n-1 without replacement, sorted, int64, in O(k) time and memory for k <= n/2.

    Above n/2 the n - k numbers left out are drawn, so that the cost is O(n) at most.

    Raises:
        ValueError: k is not within 0..n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"cannot draw {k} of {n} positions without replacement")
    if 2 * k > n:
        kept = torch.ones(n, dtype=torch.bool, device=device)
        kept[_first_distinct(key, n - k, n, device)] = False
        return kept.nonzero().squeeze(1)
    return _first_distinct(key, k, n, device)


def _first_distinct(key: int, k: int, n: int, device: torch.device | str | None) -> Tensor:
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    # n * ln(n / (n - k)) <= 1.39 k draws hold k distinct values on average; a fifth more nearly always does.
    draws = k + k // 2 + 64
    while True:
        value = _shift_right(bits(key, torch.arange(draws, device=device)), 1) % n
        ordered, when = torch.sort(value, stable=True)
        is_first = torch.ones_like(ordered, dtype=torch.bool)
        is_first[1:] = ordered[1:] != ordered[:-1]
        ordered, when = ordered[is_first], when[is_first]
        if len(ordered) >= k:
            return ordered[when <= torch.sort(when).values[k - 1]]
        draws *= 2


def _signed(word: int) -> int:
    """The int64 with the same 64 bits as the unsigned `word`."""
    return word - 2**64 if word >= 2**63 else word


def _shift_right(z: Tensor, by: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 repeats the sign bit."""
    return (z >> by) & ((1 << (64 - by)) - 1)
