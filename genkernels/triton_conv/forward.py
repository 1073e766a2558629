"""Implicit matrix product over live taps: the convolution, forward or to its input, plain, strided or transposed.

One program makes a tile of `BM` output pixels x `BN` output channels, and walks K = taps x channels in steps of `BK`;
no patch matrix exists. x is read once per tap and tile column (from L2, since neighbouring programs share it), the
packed weights once per tile row, y is written once. With channels innermost both operands are 16-byte loads that
pipeline through shared memory into the tensor cores, which should bound it from about 64 channels on, and the reads
below that. Measured on one H100 at commit bff14a1 neither does: forward and backward of a gated 3x3 mask B, 128 ->
256, bfloat16, reach 27 % of the peak, a first layer 3 -> 128 3 %, and a training step of a transposed block takes 1.8
to 2.3 times as long as torch.compile's. Fewer than 16 channels would waste the tensor core's depth, so then K is
walked as one run over (tap, channel).

A tap is a shift of the pixel: first + index * step. With PHASE_H x PHASE_W > 1 the kernel is a transposed convolution
of that stride: every output phase is a small convolution of its own over the taps that reach it, nothing is multiplied
by an inserted zero. With colour groups the last tap, the centre, is walked over the channels that some output channel
of the tile sees; pairs inside such a block that are hidden have a packed weight of zero.

A gate makes h channels of 2h. Packed side by side, a unit's two halves are neighbours in the accumulator, in the same
thread's registers: the epilogue splits them, and the 2h features reach memory only where backward will want them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(v, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 to the nearest of DTYPE. Triton's interpreter cuts bfloat16 off instead, so round for it."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = v.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        v = tl.where(v == v, nearest, v)
    return v.to(DTYPE)


@triton.jit
def activate(v, slope, ACTIVATION: tl.constexpr):
    """The activation, in float32; a NaN stays one."""
    if ACTIVATION == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif ACTIVATION == "leaky_relu":
        v = tl.where(v < 0, v * slope, v)
    elif ACTIVATION == "sigmoid":
        v = 1 / (1 + tl.exp(-v))
    elif ACTIVATION == "tanh":
        e = tl.exp(-2 * tl.abs(v))
        t = (1 - e) / (1 + e)
        v = tl.where(v < 0, -t, t)
    return v


@triton.jit(
    do_not_specialize=[
        "rows", "P", "Q", "H", "W", "y_height", "y_width", "kernel_h", "kernel_w", "taps", "groups", "see_own",
        "first_h", "first_w", "step_h", "step_w", "stride_h", "stride_w", "slope",
    ]
)  # fmt: skip
def conv_kernel(
    x, w, scale, bias, addend, y, features, stats,
    rows, P, Q,  # output pixels in all (of one phase), and rows and columns of an image of them
    H, W, y_height, y_width,
    C, OUT, w_row,  # channels in and out, and the length of a row of packed weights (of one phase)
    kernel_h, kernel_w, taps,  # taps: how many are live for all channel pairs (not read where there are phases)
    groups, see_own,  # colour groups, and 1 where a group sees itself
    first_h, first_w, step_h, step_w, stride_h, stride_w,
    slope,
    xs_n, xs_c, xs_h, xs_w,
    ys_n, ys_c, ys_h, ys_w,
    as_n, as_c, as_h, as_w,
    fs_n, fs_c, fs_h, fs_w,
    PHASE_H: tl.constexpr, PHASE_W: tl.constexpr,
    FLAT_K: tl.constexpr,  # K is one run over (tap, channel)
    GROUPED: tl.constexpr,  # "" | "forward": o sees the c of earlier groups | "backward": o is seen by later ones
    C_HALVES: tl.constexpr,  # each half of C has the groups of C / 2 units
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,  # y is tanh(first half) * sigmoid(second half), packed in pairs, each with its addend
    STATS: tl.constexpr,  # also writes the mean and the sum of squared deviations of each channel over the tile
    WIDE: tl.constexpr,  # 64-bit index arithmetic
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,  # by Triton's interpreter, whose tl.dot is wrong in bfloat16
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # --- which tile: columns innermost, so that programs side by side read the same x ---
    tiles_n = tl.cdiv(OUT, BN)
    tiles_m = tl.cdiv(rows, BM)
    pid = tl.program_id(0)
    n_tile = pid % tiles_n
    m_tile = (pid // tiles_n) % tiles_m
    phase = pid // (tiles_n * tiles_m)

    # --- which taps ---
    tap_count = taps
    taps_w = kernel_w
    tap_h = first_h
    tap_w = first_w
    phase_h = 0
    phase_w = 0
    if PHASE_H * PHASE_W > 1:
        # first_h, first_w are the padding; output q * PHASE + phase gets tap r from input q + (phase + pad - r) / PHASE
        phase_h = phase // PHASE_W
        phase_w = phase % PHASE_W
        skip_h = (phase_h + first_h) % PHASE_H
        skip_w = (phase_w + first_w) % PHASE_W
        tap_h = (phase_h + first_h - skip_h) // PHASE_H
        tap_w = (phase_w + first_w - skip_w) // PHASE_W
        taps_w = tl.maximum(kernel_w - skip_w + PHASE_W - 1, 0) // PHASE_W
        tap_count = tl.maximum(kernel_h - skip_h + PHASE_H - 1, 0) // PHASE_H * taps_w

    # --- which pixels and channels ---
    m = tl.arange(0, BM)
    n = n_tile * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    row = m_tile * BM + m
    if WIDE:
        row = m_tile.to(tl.int64) * BM + m
        n = n.to(tl.int64)
        k = k.to(tl.int64)
    image = row // (P * Q)
    i = row // Q % P
    j = row % Q
    valid = row < rows
    h = i * stride_h
    v = j * stride_w
    x_row = image * xs_n + h * xs_h + v * xs_w
    w_tile = w + phase * OUT * w_row + n[None, :] * w_row + k[:, None]
    w_mask = (n < OUT)[None, :]

    acc = tl.zeros((BM, BN), tl.float32)
    if FLAT_K:
        depth = tap_count * C
        for k0 in range(0, depth, BK):
            kk = k0 + k
            tap = kk // C
            dh = tap_h + tap // taps_w * step_h
            dw = tap_w + tap % taps_w * step_w
            hh = h[:, None] + dh[None, :]
            ww = v[:, None] + dw[None, :]
            inside = (hh >= 0) & (hh < H) & (ww >= 0) & (ww < W) & valid[:, None] & (kk < depth)[None, :]
            x_k = dh * xs_h + dw * xs_w + kk % C * xs_c
            a = tl.load(x + x_row[:, None] + x_k[None, :], mask=inside, other=0.0)
            b = tl.load(w_tile + k0, mask=w_mask, other=0.0)
            if INTERPRETED:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        chunks = tl.cdiv(C, BK)
        steps = tap_count * chunks
        begin = 0
        c_units = C
        if C_HALVES:
            c_units = C // 2
        if GROUPED != "":
            # Channels are in blocks. Some output channel of the tile sees input channels [begin * BK, end * BK).
            end = chunks
            if GROUPED == "forward":
                last = tl.minimum(n_tile * BN + BN, OUT) - 1
                if GATED:
                    group = last // 2 * groups // (OUT // 2)
                else:
                    group = last * groups // OUT
                end = tl.cdiv(tl.cdiv((group + see_own) * C, groups), BK)
            else:
                begin = tl.cdiv((n_tile * BN * groups // OUT + 1 - see_own) * c_units, groups) // BK
            steps += tl.maximum(end - begin, 0)
        # The running position (tap, chunk) is carried along, as divisions would cost more than they look.
        tap = 0
        column = 0
        c = tl.where(tap_count == 0, begin * BK, 0)
        for _ in range(steps):
            dh = tap_h
            dw = tap_w + column * step_w
            shift = dh * xs_h + dw * xs_w
            if WIDE:
                shift = dh.to(tl.int64) * xs_h + dw.to(tl.int64) * xs_w
            inside = (h + dh >= 0) & (h + dh < H) & (v + dw >= 0) & (v + dw < W) & valid
            ck = c + k
            x_tile = x + (x_row + shift)[:, None] + (ck * xs_c)[None, :]
            a = tl.load(x_tile, mask=inside[:, None] & (ck < C)[None, :], other=0.0)
            b = tl.load(w_tile + (tap * chunks * BK + c), mask=w_mask, other=0.0)
            if INTERPRETED:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
            c += BK
            next_tap = c >= C
            tap = tl.where(next_tap, tap + 1, tap)
            c = tl.where(next_tap, tl.where(tap == tap_count, begin * BK, 0), c)
            column = tl.where(next_tap, column + 1, column)
            next_line = column == taps_w
            tap_h = tl.where(next_line, tap_h + step_h, tap_h)
            column = tl.where(next_line, 0, column)

    # --- epilogue ---
    oh = i * PHASE_H + phase_h
    ow = j * PHASE_W + phase_w
    valid = valid & (oh < y_height) & (ow < y_width)
    y_row = image * ys_n + oh * ys_h + ow * ys_w
    if GATED:
        unit = n_tile * (BN // 2) + tl.arange(0, BN // 2)
        if WIDE:
            unit = unit.to(tl.int64)
        units = OUT // 2
        there = valid[:, None] & (unit < units)[None, :]
        content, gate = tl.split(tl.reshape(acc, (BM, BN // 2, 2)))
        if HAS_BIAS:
            content += tl.load(bias + unit, mask=unit < units, other=0.0).to(tl.float32)[None, :]
            gate += tl.load(bias + units + unit, mask=unit < units, other=0.0).to(tl.float32)[None, :]
        if addend is not None:
            a_tile = addend + (image * as_n + oh * as_h + ow * as_w)[:, None]
            content += tl.load(a_tile + (unit * as_c)[None, :], mask=there, other=0.0).to(tl.float32)
            gate += tl.load(a_tile + ((units + unit) * as_c)[None, :], mask=there, other=0.0).to(tl.float32)
        if features is not None:
            f_tile = features + (image * fs_n + oh * fs_h + ow * fs_w)[:, None]
            f_type = features.dtype.element_ty
            tl.store(f_tile + (unit * fs_c)[None, :], rounded(content, f_type, INTERPRETED), mask=there)
            tl.store(f_tile + ((units + unit) * fs_c)[None, :], rounded(gate, f_type, INTERPRETED), mask=there)
        out = activate(content, slope, "tanh") * activate(gate, slope, "sigmoid")
        y_tile = y + y_row[:, None] + (unit * ys_c)[None, :]
        tl.store(y_tile, rounded(out, y.dtype.element_ty, INTERPRETED), mask=there)
    else:
        if HAS_SCALE:
            acc *= tl.load(scale + n, mask=n < OUT, other=0.0).to(tl.float32)[None, :]
        if HAS_BIAS:
            acc += tl.load(bias + n, mask=n < OUT, other=0.0).to(tl.float32)[None, :]
        out = rounded(activate(acc, slope, ACTIVATION), y.dtype.element_ty, INTERPRETED)
        y_tile = y + y_row[:, None] + (n * ys_c)[None, :]
        tl.store(y_tile, out, mask=valid[:, None] & (n < OUT)[None, :])
    if STATS:
        # Of the values as they were rounded to y. [tiles, 3, OUT]: how many, their mean, squared deviations from it.
        z = tl.where(valid[:, None], out.to(tl.float32), 0.0)
        count = tl.sum(valid.to(tl.float32), 0)
        mean = tl.sum(z, 0) / tl.maximum(count, 1.0)
        deviation = tl.where(valid[:, None], z - mean[None, :], 0.0)
        part = stats + (phase * tiles_m + m_tile).to(tl.int64) * 3 * OUT + n
        tl.store(part, tl.zeros_like(mean) + count, mask=n < OUT)
        tl.store(part + OUT, mean, mask=n < OUT)
        tl.store(part + 2 * OUT, tl.sum(deviation * deviation, 0), mask=n < OUT)
