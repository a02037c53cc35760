"""The counter-based generator in Python's unbounded integers, written from docs/generator.md alone."""

import hashlib
from statistics import NormalDist

MASK = 2**64 - 1


def key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bits(state: int, i: int) -> int:
    z = (state + (i + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(text: str, i: int) -> float:
    return ((bits(key(text), i) >> 11) + 0.5) / 2**53


def normal(text: str, i: int) -> float:
    return NormalDist().inv_cdf(uniform(text, i))


def signs(text: str, n: int) -> list[int]:
    return [-1 if bits(key(text), i) >> 63 else 1 for i in range(n)]


def permutation(text: str, n: int) -> list[int]:
    return sorted(range(n), key=lambda i: bits(key(text), i) >> 1)


def sample(text: str, k: int, n: int) -> list[int]:
    wanted = n - k if 2 * k > n else k
    seen: dict[int, None] = {}
    i = 0
    while len(seen) < wanted:
        seen.setdefault((bits(key(text), i) >> 1) % n)
        i += 1
    return sorted(set(range(n)) - set(seen)) if 2 * k > n else sorted(seen)
