"""The orthonormal discrete cosine transform and its transpose, by one real FFT of the same length.

    (C x)_k = s_k sum_j x_j cos(pi k (2j + 1) / 2n),   s_0 = sqrt(1/n), s_k = sqrt(2/n)

C is orthogonal, so its transpose (DCT-III) is its inverse.

Reference: Makhoul, "A fast cosine transform in one and two dimensions", IEEE Trans. ASSP 28 (1980).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dctps.transforms.tables import exporting_to_onnx, shape_table


def dct(x: Tensor) -> Tensor:
    """The orthonormal DCT-II of the last dimension, in O(n log n).

    Args:
        x: float32 or float64, shape (*, n), n >= 1.

    Returns:
        C x, of x's shape and dtype; equals `scipy.fft.dct(x, norm="ortho")`.
    """
    n = int(x.shape[-1])
    if x.numel() == 0:  # MKL refuses an empty batch
        return x.clone()
    if exporting_to_onnx():
        return _dct_by_products(x)
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    z = torch.fft.rfft(v) * _twiddle(n, x.dtype, x.device)
    return torch.cat([z.real, -z.imag[..., 1 : (n + 1) // 2].flip(-1)], -1)


def idct(y: Tensor) -> Tensor:
    """The orthonormal DCT-III of the last dimension: inverse and transpose of `dct`, in O(n log n).

    Args:
        y: float32 or float64, shape (*, n), n >= 1.

    Returns:
        C^T y, of y's shape and dtype; equals `scipy.fft.idct(y, norm="ortho")`.
    """
    n = int(y.shape[-1])
    if y.numel() == 0:
        return y.clone()
    half = n // 2 + 1
    # z_k = y_k - i y_{n-k}, where y_n counts as 0
    mirrored = torch.cat([torch.zeros_like(y[..., :1]), y[..., 1:].flip(-1)], -1)
    z = torch.complex(y[..., :half].contiguous(), -mirrored[..., :half].contiguous())
    v = torch.fft.irfft(z / _twiddle(n, y.dtype, y.device), n)
    even, odd = v[..., : (n + 1) // 2], v[..., (n + 1) // 2 :].flip(-1)
    if n % 2:
        odd = torch.cat([odd, torch.zeros_like(odd[..., :1] if n > 1 else even)], -1)
    return torch.stack([even, odd], -1).flatten(-2)[..., :n]


def dct_rows(frequencies: Tensor, q: int, coarse: int, fine: int, *, dtype: torch.dtype) -> Tensor:
    """Entries C[o, s * fine + c] of the DCT-II matrix of size q, without a transform.

    By the angle-addition rule a row is a sum of two outer products of short vectors,

        cos(pi o (2(s T + c) + 1) / 2q) = cos(A_os) cos(B_oc) - sin(A_os) sin(B_oc),  T = fine,

    so that m * (coarse + fine) cosines make m * coarse * fine entries.

    Args:
        frequencies: int64 (m,), the rows o, each in 0..q-1.
        q: size of the matrix; columns at or beyond it continue the cosines and mean nothing.
        coarse: number of blocks s.
        fine: length of a block.
        dtype: float32 or float64.

    Returns:
        shape (m, coarse, fine), on the device of `frequencies`.
    """
    # One batched product of rank 2 writes the result once.
    return torch.bmm(*dct_row_factors(frequencies, q, coarse, fine, dtype=dtype))


def dct_row_factors(
    frequencies: Tensor, q: int, coarse: int, fine: int, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The vectors (cos A, -sin A), (m, coarse, 2), and (cos B, sin B), (m, 2, fine), of `dct_rows`."""
    device = frequencies.device
    cosine = cosines(q, dtype, device)
    o = frequencies[:, None]
    a = o * (2 * fine * torch.arange(coarse, dtype=torch.int64, device=device)) % (4 * q)
    b = o * (2 * torch.arange(fine, dtype=torch.int64, device=device) + 1) % (4 * q)
    scale = _scales(o, q).to(dtype)
    cos_b, sin_b = scale * cosine[b], scale * cosine[(b + 3 * q) % (4 * q)]
    cos_a, sin_a = cosine[a], cosine[(a + 3 * q) % (4 * q)]
    return torch.stack([cos_a, -sin_a], -1), torch.stack([cos_b, sin_b], 1)


def dct_ref(x: Tensor) -> Tensor:
    """Slow twin of `dct`: the matrix product in float64."""
    return x.double() @ _matrix_ref(x.shape[-1], x.device).T


def idct_ref(y: Tensor) -> Tensor:
    """Slow twin of `idct`: the matrix product in float64."""
    return y.double() @ _matrix_ref(y.shape[-1], y.device)


def _dct_by_products(x: Tensor) -> Tensor:
    """`dct` by small matrix products, in O(n (a + b)) for n = a b.

    ONNX runtimes have matrix products everywhere, but their DFT, where there is
    one, is direct for most lengths and accurate to 1e-4 only. With j = j1 b + j2 and k = k1 + a k2,

        V_k = sum_j2 exp(-2 pi i j2 k2 / b) exp(-2 pi i j2 k1 / n) sum_j1 exp(-2 pi i j1 k1 / a) v_j
    """
    n = int(x.shape[-1])
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    a = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    b = n // a

    def circle(length: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of 2 pi r c / length."""
        r, c = (torch.arange(size, dtype=torch.int64, device=v.device) for size in (rows, columns))
        t = 4 * (r[:, None] * c % length)
        cosine = cosines(length, v.dtype, v.device)
        return cosine[t], cosine[(t + 3 * length) % (4 * length)]

    cos_a, sin_a = circle(a, a, a)
    cos_n, sin_n = circle(n, a, b)
    cos_b, sin_b = circle(b, b, b)
    blocks: Tensor = v.unflatten(-1, (a, b))
    real, imaginary = cos_a @ blocks, -(sin_a @ blocks)
    real, imaginary = real * cos_n + imaginary * sin_n, imaginary * cos_n - real * sin_n
    real, imaginary = real @ cos_b + imaginary @ sin_b, imaginary @ cos_b - real @ sin_b
    twist = _full_twiddle(n, v.dtype, v.device)
    return real.transpose(-1, -2).flatten(-2) * twist[0] + imaginary.transpose(-1, -2).flatten(-2) * twist[1]


def _matrix_ref(n: int, device: torch.device) -> Tensor:
    j = torch.arange(n, dtype=torch.int64, device=device)
    k = j[:, None]
    # Reducing the integer first keeps the cosine's argument small and exact.
    angle = (k * (2 * j + 1) % (4 * n)).double() * (math.pi / (2 * n))
    return _scales(k, n) * torch.cos(angle)


@shape_table
def _twiddle(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """s_k exp(-i pi k / 2n) for k = 0..n//2, complex."""
    k = torch.arange(n // 2 + 1, dtype=torch.int64, device=device)
    return torch.polar(_scales(k, n), -math.pi / (2 * n) * k.double()).to(dtype.to_complex())


@shape_table
def _full_twiddle(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """s_k cos(pi k / 2n) and s_k sin(pi k / 2n) for k = 0..n-1, (2, n)."""
    k = torch.arange(n, dtype=torch.int64, device=device)
    angle = math.pi / (2 * n) * k.double()
    return (_scales(k, n) * torch.stack([torch.cos(angle), torch.sin(angle)])).to(dtype)


@shape_table
def cosines(q: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """cos(pi t / 2q) for t = 0..4q-1.

    The two zeros are 0, not the 6e-17 of a rounded angle: a product of three is subnormal in float32, and a
    convolution with one subnormal weight takes several times as long.
    """
    t = torch.arange(4 * q, dtype=torch.float64, device=device)
    cosine = torch.cos(t * (math.pi / (2 * q)))
    cosine[q :: 2 * q] = 0
    return cosine.to(dtype)


def _scales(k: Tensor, n: int) -> Tensor:
    """s_k, which makes row k of the transform a unit vector, float64."""
    scale = torch.full_like(k, math.sqrt(2 / n), dtype=torch.float64)
    return scale.masked_fill_(k == 0, math.sqrt(1 / n))
