"""Triton kernels on a weight W of m rows of n, in x's dtype, in torch's order or channels last.

    D[o, s * fine + c] = sign * Re(left[i_o, s] right[j_o, c])         (`offsets/factors.py`)
    make_weight        W = alpha * D
    put_values         W = alpha * D + S at the support, rounded once
    gradients          the gradient of the values, and each program's part of <dW, D>
    add_parts          the sum of the parts

Everything is computed in float32; sums over more than one row are in float64, in a fixed order. Half
precision is converted as it is loaded and stored: Triton's interpreter computes it wrongly.
"""

import triton
import triton.language as tl


@triton.jit
def _row_of(index, o, INDEXED: tl.constexpr):
    """Which row of a table an output takes."""
    row = o
    if INDEXED:
        row = tl.load(index + o)
    return row.to(tl.int64)


@triton.jit
def _signs_of(signs, sign_index, o, run, n, LOOKED_UP: tl.constexpr):
    """Where the signs of an output begin."""
    block = o // run
    if LOOKED_UP:
        block = tl.load(sign_index + o)
    return signs + block.to(tl.int64) * n


@triton.jit
def _place(k, channels, taps, FACTORS_LAST: tl.constexpr, LAST: tl.constexpr):
    """Where entry k of a row of the factors lies in a row of W."""
    place = k
    if FACTORS_LAST and not LAST:
        place = (k % channels) * taps + k // channels
    if LAST and not FACTORS_LAST:
        place = (k % taps) * channels + k // taps
    return place


@triton.jit
def _tile(
    left, right, left_index, right_index, signs, sign_index, o, s, c, n, coarse, fine, run,
    COMPLEX: tl.constexpr, INDEXED: tl.constexpr, SIGNED: tl.constexpr, LOOKED_UP: tl.constexpr,
):  # fmt: skip
    """D of output o at blocks s and places c, (len(s), len(c)), without alpha."""
    at_left = _row_of(left_index, o, INDEXED) * coarse + s
    at_right = _row_of(right_index, o, INDEXED) * fine + c
    if COMPLEX:
        cos_a = tl.load(left + 2 * at_left, mask=s < coarse, other=0.0)
        sin_a = tl.load(left + 2 * at_left + 1, mask=s < coarse, other=0.0)
        cos_b = tl.load(right + 2 * at_right, mask=c < fine, other=0.0)
        sin_b = tl.load(right + 2 * at_right + 1, mask=c < fine, other=0.0)
        d = cos_a[:, None] * cos_b[None, :] - sin_a[:, None] * sin_b[None, :]
    else:
        a = tl.load(left + at_left, mask=s < coarse, other=0.0)
        b = tl.load(right + at_right, mask=c < fine, other=0.0)
        d = a[:, None] * b[None, :]
    if SIGNED:
        k = s[:, None] * fine + c[None, :]
        inside = (s < coarse)[:, None] & (c < fine)[None, :] & (k < n)
        begin = _signs_of(signs, sign_index, o, run, n, LOOKED_UP)
        d = d * tl.load(begin + k, mask=inside, other=0).to(tl.float32)
    return d


@triton.jit
def make_weight(
    w, alpha, left, right, left_index, right_index, signs, sign_index, n, coarse, fine, run, channels, taps,
    COMPLEX: tl.constexpr, INDEXED: tl.constexpr, SIGNED: tl.constexpr, LOOKED_UP: tl.constexpr,
    FACTORS_LAST: tl.constexpr, LAST: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Each program: BS x BC entries of one row."""
    o, tile = tl.program_id(0), tl.program_id(1)
    across = tl.cdiv(fine, BC)
    s = (tile // across) * BS + tl.arange(0, BS)
    c = (tile % across) * BC + tl.arange(0, BC)
    d = _tile(
        left, right, left_index, right_index, signs, sign_index, o, s, c, n, coarse, fine, run,
        COMPLEX, INDEXED, SIGNED, LOOKED_UP,
    )  # fmt: skip
    d = d * tl.load(alpha).to(tl.float32)
    k = s[:, None] * fine + c[None, :]
    inside = (s < coarse)[:, None] & (c < fine)[None, :] & (k < n)
    place = _place(k, channels, taps, FACTORS_LAST, LAST)
    tl.store(w + o.to(tl.int64) * n + place, d.to(w.dtype.element_ty), mask=inside)


@triton.jit
def _positions(p, n, channels, taps, FACTORS_LAST: tl.constexpr, LAST: tl.constexpr):
    """Of torch's flat positions: the output, the entry of the factors' row, the place in W's row."""
    o, k = p // n, p % n
    last = (k % taps) * channels + k // taps
    entry, place = k, k
    if FACTORS_LAST:
        entry = last
    if LAST:
        place = last
    return o, entry, place


@triton.jit
def put_values(
    w, alpha, values, support, left, right, left_index, right_index, signs, sign_index,
    nnz, n, coarse, fine, run, channels, taps,
    COMPLEX: tl.constexpr, INDEXED: tl.constexpr, SIGNED: tl.constexpr, LOOKED_UP: tl.constexpr,
    FACTORS_LAST: tl.constexpr, LAST: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program: BLOCK nonzeros."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < nnz
    p = tl.load(support + i, mask=inside, other=0)
    value = tl.load(values + i, mask=inside, other=0.0).to(tl.float32)
    o, k, place = _positions(p, n, channels, taps, FACTORS_LAST, LAST)
    if OFFSET:
        row_left, row_right = o, o
        if INDEXED:
            row_left = tl.load(left_index + o, mask=inside, other=0).to(tl.int64)
            row_right = tl.load(right_index + o, mask=inside, other=0).to(tl.int64)
        at_left, at_right = row_left * coarse + k // fine, row_right * fine + k % fine
        if COMPLEX:
            d = tl.load(left + 2 * at_left, mask=inside, other=0.0) * tl.load(
                right + 2 * at_right, mask=inside, other=0.0
            )
            d -= tl.load(left + 2 * at_left + 1, mask=inside, other=0.0) * tl.load(
                right + 2 * at_right + 1, mask=inside, other=0.0
            )
        else:
            d = tl.load(left + at_left, mask=inside, other=0.0)
            d *= tl.load(right + at_right, mask=inside, other=0.0)
        if SIGNED:
            block = o // run
            if LOOKED_UP:
                block = tl.load(sign_index + o, mask=inside, other=0).to(tl.int64)
            d *= tl.load(signs + block * n + k, mask=inside, other=0).to(tl.float32)
        value += d * tl.load(alpha).to(tl.float32)
    tl.store(w + o * n + place, value.to(w.dtype.element_ty), mask=inside)


@triton.jit
def gradients(
    grad_w, grad_values, parts, support, left, right, left_index, right_index, signs, sign_index,
    nnz, summing, m, n, coarse, fine, run, channels, taps,
    COMPLEX: tl.constexpr, INDEXED: tl.constexpr, SIGNED: tl.constexpr, LOOKED_UP: tl.constexpr,
    FACTORS_LAST: tl.constexpr, LAST: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The first `summing` programs: BS x BC entries of ROWS rows; the others: BLOCK nonzeros each."""
    program = tl.program_id(0)
    if program < summing:
        across, down = tl.cdiv(fine, BC), tl.cdiv(coarse, BS)
        tile, first = program % (across * down), program // (across * down) * ROWS
        s = (tile // across) * BS + tl.arange(0, BS)
        c = (tile % across) * BC + tl.arange(0, BC)
        k = s[:, None] * fine + c[None, :]
        place = _place(k, channels, taps, FACTORS_LAST, LAST)
        inside = (s < coarse)[:, None] & (c < fine)[None, :] & (k < n)
        total = tl.zeros((BS,), tl.float64)
        o, past = first, tl.minimum(first + ROWS, m)
        while o < past:
            d = _tile(
                left, right, left_index, right_index, signs, sign_index, o, s, c, n, coarse, fine, run,
                COMPLEX, INDEXED, SIGNED, LOOKED_UP,
            )  # fmt: skip
            g = tl.load(grad_w + o.to(tl.int64) * n + place, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(d * g, axis=1).to(tl.float64)
            o += 1
        tl.store(parts + program, tl.sum(total, axis=0))
    else:
        i = (program - summing) * BLOCK + tl.arange(0, BLOCK)
        p = tl.load(support + i, mask=i < nnz, other=0)
        # A name has one type in both branches, so these are others than above.
        output, _, at = _positions(p, n, channels, taps, FACTORS_LAST, LAST)
        value = tl.load(grad_w + output * n + at, mask=i < nnz, other=0.0).to(tl.float32)
        tl.store(grad_values + i, value.to(grad_values.dtype.element_ty), mask=i < nnz)


@triton.jit
def add_parts(grad_alpha, parts, count, BLOCK: tl.constexpr):
    """One program: the sum of all parts, in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    first = 0
    while first < count:
        i = first + tl.arange(0, BLOCK)
        total += tl.load(parts + i, mask=i < count, other=0.0)
        first += BLOCK
    tl.store(grad_alpha, tl.sum(total, axis=0).to(grad_alpha.dtype.element_ty))
