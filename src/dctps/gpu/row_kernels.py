"""Triton kernels on rows: D x by two small matrix products, and S x by gathered columns.

With q = a b, inputs v[j1, j2] (j = j1 b + j2) and outputs k, a transform of length q is

    Y[k1, k2] = Re sum_j2 T[k1, j2] (F v)[k1, j2] G[j2, k2]            (`products.Products`)

so that a row is one tile, read once and written once: `apply_rows`, and `adjoint_rows` from its end. x and g
come transposed to the kernels on S, so that a nonzero reads whole lines of memory: `sparse_rows` for S x, or
S^T g with the transposed S, `sparse_gradient` for the values' gradient.

Everything is summed in float32, and <D^T g, x> in float64 over rows. Half precision is converted as it is
loaded and stored; OPERAND is the dtype in which tensor cores multiply.
"""

import triton
import triton.language as tl


@triton.jit
def _source(j, q, MAKHOUL: tl.constexpr):
    """Which input entry j of v is: the even ones in order, then the odd ones backwards."""
    source = j
    if MAKHOUL:
        source = tl.where(2 * j < q, 2 * j, 2 * (q - 1 - j) + 1)
    return source


@triton.jit
def _target(order, k, block, q, m, inside, ORDERED: tl.constexpr):
    """Which output entry k of a block's transform is; m for none."""
    target = k
    if ORDERED:
        target = tl.load(order + block * q + k, mask=inside, other=m)
    return target


@triton.jit
def _square(table, i, side, OPERAND: tl.constexpr):
    """A square table."""
    inside = (i < side)[:, None] & (i < side)[None, :]
    return tl.load(table + i[:, None] * side + i[None, :], mask=inside, other=0.0).to(OPERAND)


@triton.jit
def _turned(table, i, j, side, OPERAND: tl.constexpr):
    """Rows i and columns j of its transpose."""
    inside = (i < side)[:, None] & (j < side)[None, :]
    return tl.load(table + j[None, :] * side + i[:, None], mask=inside, other=0.0).to(OPERAND)


@triton.jit
def apply_rows(
    y, x, added, alpha, bias, first, between, last, signs, order, n, m, q, a, b,
    COMPLEX: tl.constexpr, SIGNED: tl.constexpr, ORDERED: tl.constexpr, BLOCKS: tl.constexpr,
    WHOLE: tl.constexpr, ADDED: tl.constexpr, BIASED: tl.constexpr, OPERAND: tl.constexpr,
    BA: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """Each program: y = alpha D x + `added` + bias of one row."""
    i, j = tl.arange(0, BA), tl.arange(0, BB)
    tiles = (i < a)[:, None] & (j < b)[None, :]
    place = i[:, None] * b + j[None, :]
    source = _source(place, q, COMPLEX)
    k = place
    if COMPLEX:
        k = i[:, None] + a * j[None, :]
    scale = tl.load(alpha).to(tl.float32)
    row = tl.program_id(0).to(tl.int64)
    f, g = _square(first, i, a, OPERAND), _square(last, j, b, OPERAND)
    if COMPLEX:
        fi, gi = _square(first + a * a, i, a, OPERAND), _square(last + b * b, j, b, OPERAND)
    inputs = tiles & (source < n)
    if WHOLE:
        inputs = tl.full((BA, BB), True, tl.int1)
    v0 = tl.load(x + row * n + source, mask=inputs, other=0.0).to(tl.float32)
    for block in range(BLOCKS):
        v = v0
        if SIGNED:
            v = v * tl.load(signs + block * n + source, mask=inputs, other=0).to(tl.float32)
        v = v.to(OPERAND)
        u = tl.dot(f, v, input_precision="ieee")
        if COMPLEX:
            w = tl.dot(fi, v, input_precision="ieee")
            t = tl.load(between + place, mask=tiles, other=0.0)
            ti = tl.load(between + q + place, mask=tiles, other=0.0)
            real, imaginary = (u * t - w * ti).to(OPERAND), (u * ti + w * t).to(OPERAND)
            z = tl.dot(real, g, input_precision="ieee")
            z -= tl.dot(imaginary, gi, input_precision="ieee")
            z = tl.where(k == 0, z * 0.7071067811865476, z)
        else:
            z = tl.dot(u.to(OPERAND), g, input_precision="ieee")
        z = z * scale
        target = _target(order, k, block, q, m, tiles, ORDERED)
        outputs = tiles & (target < m)
        if WHOLE:
            outputs = tl.full((BA, BB), True, tl.int1)
        if BIASED:
            z += tl.load(bias + target, mask=outputs, other=0.0).to(tl.float32)
        if ADDED:
            z += tl.load(added + row * m + target, mask=outputs, other=0.0).to(tl.float32)
        tl.store(y + row * m + target, z.to(y.dtype.element_ty), mask=outputs)


@triton.jit
def adjoint_rows(
    grad_x, grad_y, x, added, alpha, parts, first, between, last, signs, order, n, m, q, a, b,
    COMPLEX: tl.constexpr, SIGNED: tl.constexpr, ORDERED: tl.constexpr, BLOCKS: tl.constexpr,
    WHOLE: tl.constexpr, ADDED: tl.constexpr, SUMMED: tl.constexpr, STORED: tl.constexpr,
    OPERAND: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Each program: grad_x = alpha D^T g + `added` and its part of <D^T g, x>.

    Of PART columns of a row's tile of inputs: the whole of a long row does not fit the registers.
    """
    i, j = tl.arange(0, BA), tl.arange(0, BB)
    k = i[:, None] * b + j[None, :]
    if COMPLEX:
        k = i[:, None] + a * j[None, :]
    tiles = (i < a)[:, None] & (j < b)[None, :]
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * PART + tl.arange(0, PART)
    inside = (i < a)[:, None] & (c < b)[None, :]
    place = i[:, None] * b + c[None, :]
    source = _source(place, q, COMPLEX)
    inputs = inside & (source < n)
    if WHOLE:
        inputs = tl.full((BA, PART), True, tl.int1)
    f, g = _turned(first, i, i, a, OPERAND), _turned(last, j, c, b, OPERAND)
    if COMPLEX:
        fi, gi = _turned(first + a * a, i, i, a, OPERAND), _turned(last + b * b, j, c, b, OPERAND)
    dx = tl.zeros((BA, PART), tl.float32)
    for block in range(BLOCKS):
        target = _target(order, k, block, q, m, tiles, ORDERED)
        outputs = tiles & (target < m)
        if WHOLE:
            outputs = tl.full((BA, BB), True, tl.int1)
        dy = tl.load(grad_y + row * m + target, mask=outputs, other=0.0).to(tl.float32)
        if COMPLEX:
            dy = tl.where(k == 0, dy * 0.7071067811865476, dy).to(OPERAND)
            u = tl.dot(dy, g, input_precision="ieee")
            w = tl.dot(dy, gi, input_precision="ieee")
            t = tl.load(between + place, mask=inside, other=0.0)
            ti = tl.load(between + q + place, mask=inside, other=0.0)
            dv = tl.dot(f, (u * t - w * ti).to(OPERAND), input_precision="ieee")
            dv -= tl.dot(fi, (u * ti + w * t).to(OPERAND), input_precision="ieee")
        else:
            u = tl.dot(dy.to(OPERAND), g, input_precision="ieee")
            dv = tl.dot(f, u.to(OPERAND), input_precision="ieee")
        if SIGNED:
            dv = dv * tl.load(signs + block * n + source, mask=inputs, other=0).to(tl.float32)
        dx += dv
    if SUMMED:
        v = tl.load(x + row * n + source, mask=inputs, other=0.0).to(tl.float32)
        part = row * tl.num_programs(1) + tl.program_id(1)
        tl.store(parts + part, tl.sum(tl.sum(dx * v, axis=1).to(tl.float64), axis=0))
    if STORED:
        dx = dx * tl.load(alpha).to(tl.float32)
        if ADDED:
            dx += tl.load(added + row * n + source, mask=inputs, other=0.0).to(tl.float32)
        tl.store(grad_x + row * n + source, dx.to(grad_x.dtype.element_ty), mask=inputs)


@triton.jit
def _first_from(support, nnz, least):
    """How many positions are below `least`: by bisection."""
    low, high = 0, nnz
    while low < high:
        middle = (low + high) // 2
        below = tl.load(support + middle) < least
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def sparse_rows(
    y, bias, values, support, xt, nnz, batch, m, n,
    BIASED: tl.constexpr, OPERAND: tl.constexpr, OUTPUTS: tl.constexpr, BATCH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program: y = S x + bias for OUTPUTS outputs of BATCH rows; xt is (n, batch), y (batch, m)."""
    first_output = tl.program_id(0) * OUTPUTS
    outputs = first_output + tl.arange(0, OUTPUTS)
    rows = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
    i = _first_from(support, nnz, first_output.to(tl.int64) * n)
    past = _first_from(support, nnz, (first_output + OUTPUTS).to(tl.int64) * n)
    total = tl.zeros((OUTPUTS, BATCH), tl.float32)
    while i < past:
        e = i + tl.arange(0, BLOCK)
        p = tl.load(support + e, mask=e < past, other=0)
        value = tl.load(values + e, mask=e < past, other=0.0)
        output, column = p // n, p % n
        at = column[:, None] * batch + rows[None, :]
        gathered = tl.load(xt + at, mask=(e < past)[:, None] & (rows < batch)[None, :], other=0.0).to(OPERAND)
        spread = tl.where(output[None, :] == outputs[:, None], value[None, :].to(tl.float32), 0.0)
        total = tl.dot(spread.to(OPERAND), gathered, total, input_precision="ieee")
        i += BLOCK
    if BIASED:
        total += tl.load(bias + outputs, mask=outputs < m, other=0.0).to(tl.float32)[:, None]
    at = rows[None, :].to(tl.int64) * m + outputs[:, None]
    inside = (rows < batch)[None, :] & (outputs < m)[:, None]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sparse_gradient(
    grad_values, support, gt, xt, nnz, batch, n, BLOCK: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """Each program: d v = sum_b g[b, row] x[b, column] of BLOCK nonzeros; gt and xt are transposed."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p = tl.load(support + e, mask=e < nnz, other=0)
    output, column = p // n, p % n
    total = tl.zeros((BLOCK,), tl.float32)
    first = 0
    while first < batch:
        rows = first + tl.arange(0, BATCH)
        inside = (e < nnz)[:, None] & (rows < batch)[None, :]
        g = tl.load(gt + output[:, None] * batch + rows[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.load(xt + column[:, None] * batch + rows[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(g * x, axis=1)
        first += BATCH
    tl.store(grad_values + e, total.to(grad_values.dtype.element_ty), mask=e < nnz)
