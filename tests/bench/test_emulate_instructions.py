"""Instructions of the emulator against arithmetic that is done another way: Python's integers and fractions, torch."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from emulated import compute, execute
from hypothesis import given, settings
from hypothesis import strategies as st

from firebolt_vl.bench.emulate.ptx import UnknownPTX

THREADS = 32
examples = settings(max_examples=8)  # of 32 numbers each
INTEGERS = {f"{sign}{bits}": np.dtype(f"{kind}{bits // 8}") for sign, kind in ("si", "uu") for bits in (16, 32, 64)}


def drawn(make):
    """What `make` does with a generator that the example owns."""
    return st.integers(0, 2**32 - 1).map(lambda seed: make(np.random.default_rng(seed)))


def numbers(dtype):
    """Any bits; among them the ends of integer types, or zeros, infinities and NaN."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        ends = np.array([0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).max, np.finfo(dtype).tiny / 4], dtype)
    else:
        ends = np.array([0, 1, np.iinfo(dtype).max, np.iinfo(dtype).min, np.iinfo(dtype).max - 1], dtype)

    def make(generator):
        bits = np.frombuffer(generator.bytes(THREADS * dtype.itemsize), dtype)
        return np.where(generator.random(THREADS) < 0.3, generator.choice(ends, THREADS), bits)

    return drawn(make)


def small(below):
    return drawn(lambda generator: generator.integers(0, below, THREADS, np.uint32))


def ordinary(dtype=np.float32, most=20):
    """Of either sign, without overflow and underflow."""

    def make(generator):
        magnitudes = 2.0 ** generator.uniform(-most, most, THREADS)
        return (magnitudes * generator.choice([-1, 1], THREADS)).astype(dtype)

    return drawn(make)


def wrapped(value, dtype):
    bits = 8 * dtype.itemsize
    value &= (1 << bits) - 1
    return value - (1 << bits) if dtype.kind == "i" and value >> (bits - 1) else value


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize("kind", INTEGERS)
@examples
@given(data=st.data())
def test_integers_wrap_around(kind, data):
    dtype = INTEGERS[kind]
    a, b, c = (data.draw(numbers(dtype)) for _ in range(3))
    a_b_c = [[int(x) for x in row] for row in zip(a, b, c)]
    for opcode, operands, wanted in (
        ("add", (a, b), lambda a, b, c: a + b),
        ("sub", (a, b), lambda a, b, c: a - b),
        ("mul.lo", (a, b), lambda a, b, c: a * b),
        ("mad.lo", (a, b, c), lambda a, b, c: a * b + c),
        ("max", (a, b), lambda a, b, c: max(a, b)),
        ("min", (a, b), lambda a, b, c: min(a, b)),
    ):
        found = compute(f"{opcode}.{kind}", *operands, result=dtype)
        assert found.tolist() == [wrapped(wanted(*row), dtype) for row in a_b_c], opcode


@pytest.mark.parametrize("kind", ["s32", "u32", "s64"])
@examples
@given(data=st.data())
def test_integers_are_divided_towards_zero(kind, data):
    dtype = INTEGERS[kind]
    a, b = (data.draw(numbers(dtype)) for _ in range(2))
    b[b == 0] = 3
    pairs = [(int(x), int(y)) for x, y in zip(a, b)]
    assert compute(f"div.{kind}", a, b, result=dtype).tolist() == [wrapped(truncated(*pair), dtype) for pair in pairs]
    wanted = [wrapped(x - y * truncated(x, y), dtype) for x, y in pairs]
    assert compute(f"rem.{kind}", a, b, result=dtype).tolist() == wanted


@pytest.mark.parametrize(("kind", "wide"), [("s32", "i8"), ("u32", "u8"), ("u16", "u4")])
@examples
@given(data=st.data())
def test_wide_products_keep_all_bits(kind, wide, data):
    dtype, wide = INTEGERS[kind], np.dtype(wide)
    a, b = (data.draw(numbers(dtype)) for _ in range(2))
    products = [int(x) * int(y) for x, y in zip(a, b)]
    assert compute(f"mul.wide.{kind}", a, b, result=wide).tolist() == products
    if dtype.itemsize == 4:
        assert compute(f"mul.hi.{kind}", a, b, result=dtype).tolist() == [product >> 32 for product in products]


@examples
@given(a=numbers(np.uint32), b=numbers(np.uint32), by=small(41))
def test_shifts_push_bits_out(a, b, by):
    rows = [(int(x), int(y), int(k)) for x, y, k in zip(a, b, by)]
    found = compute("shl.b32", a, by, result=np.dtype("u4"))
    assert found.tolist() == [(x << k) & 0xFFFFFFFF for x, _, k in rows]
    assert compute("shr.u32", a, by, result=np.dtype("u4")).tolist() == [x >> k for x, _, k in rows]
    signed = a.view(np.int32)
    assert compute("shr.s32", signed, by, result=np.dtype("i4")).tolist() == [
        int(x) >> int(k) for x, k in zip(signed, by)
    ]
    both = [(y << 32 | x) << (k % 32) >> 32 & 0xFFFFFFFF for x, y, k in rows]
    assert compute("shf.l.wrap.b32", a, b, by, result=np.dtype("u4")).tolist() == both


@examples
@given(a=numbers(np.uint32), start=st.integers(0, 31), length=st.integers(0, 32))
def test_fields_of_bits(a, start, length):
    found = compute("bfe.u32", a, str(start), str(length), result=np.dtype("u4"))
    assert found.tolist() == [(int(x) >> start) & ((1 << length) - 1) for x in a]
    if start + length <= 32:
        signed = compute("bfe.s32", a.view(np.int32), str(start), str(length), result=np.dtype("i4"))
        wanted = [int(x) - (1 << length if length and x >> np.uint32(length - 1) else 0) for x in found]
        assert signed.tolist() == wanted


@examples
@given(a=numbers(np.uint32), b=numbers(np.uint32), selector=st.integers(0, 0xFFFF))
def test_bytes_are_permuted(a, b, selector):
    def byte(x, y, nibble):
        chosen = (y << 32 | x) >> 8 * (nibble & 7) & 0xFF
        return (0xFF if chosen & 0x80 else 0) if nibble & 8 else chosen

    found = compute("prmt.b32", a, b, hex(selector), result=np.dtype("u4"))
    for x, y, z in zip(a, b, found):
        assert int(z) == sum(byte(int(x), int(y), selector >> 4 * k & 15) << 8 * k for k in range(4))


@examples
@given(a=numbers(np.uint32), b=numbers(np.uint32), c=numbers(np.uint32))
def test_logic_by_a_table(a, b, c):
    assert (compute("lop3.b32", a, b, c, "0xE8", result=np.dtype("u4")) == (a & b | a & c | b & c)).all()
    assert (compute("lop3.b32", a, b, c, "0x96", result=np.dtype("u4")) == a ^ b ^ c).all()


@examples
@given(a=ordinary(), b=ordinary(), c=ordinary())
def test_a_fused_product_is_rounded_once(a, b, c):
    """Also where the sum in float64 would be a tie that it is not."""
    a[0], b[0], c[0] = 1 + 2**-12, 1 + 2**-12, -(2.0**-54)  # 1 + 2^-11 + 2^-24, just below a tie
    found = compute("fma.rn.f32", a, b, c, result=np.dtype("f4"))
    for x, y, z, ours in zip(a, b, c, found):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        off = abs(Fraction(float(ours)) - exact)
        for neighbour in (np.nextafter(ours, -np.inf), np.nextafter(ours, np.inf)):
            assert off <= abs(Fraction(float(neighbour)) - exact)


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
@examples
@given(data=st.data())
def test_halves_are_rounded_to_the_nearest(kind, dtype, data):
    x = data.draw(numbers(np.float32))
    bits = compute(f"cvt.rn.{kind}.f32", x, result=np.dtype("u2"))
    wanted = torch.from_numpy(x).to(dtype)
    found = torch.from_numpy(bits.view(np.int16)).view(dtype)
    assert torch.equal(found.nan_to_num(7), wanted.nan_to_num(7))
    back = compute(f"cvt.f32.{kind}", bits, result=np.dtype("f4"))
    assert np.array_equal(back, wanted.float().numpy(), equal_nan=True)


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
@examples
@given(data=st.data())
def test_halves_are_fused_in_pairs(kind, dtype, data):
    """float64 holds a product and a sum of halves of ordinary size; its rounding to a half is the only one."""
    a, b, c = (torch.from_numpy(data.draw(ordinary(np.float16, 4))).to(dtype) for _ in range(3))
    packed = [x.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) for x in (a, b, c)]
    found = compute(f"fma.rn.{kind}x2", *[x << np.uint32(16) | x for x in packed], result=np.dtype("u4"))
    exact = a.double() * b.double() + c.double()
    for half in (found & np.uint32(0xFFFF), found >> np.uint32(16)):
        ours = torch.from_numpy(half.astype(np.uint16).view(np.int16)).view(dtype).double()
        spacing = torch.finfo(dtype).eps * 2.0 ** torch.log2(exact.abs()).floor()
        assert ((ours - exact).abs() <= spacing / 2).all()


@examples
@given(x=ordinary(most=6), y=ordinary(most=6))
def test_a_half_is_added_to_a_float32(x, y):
    half = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    wide = (half.astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert (compute("add.rn.f32.bf16", half, y, result=np.dtype("f4")) == wide + y).all()
    exact = wide.astype(np.float64) * wide + y  # which float64 holds
    assert (compute("fma.rn.f32.bf16", half, half, y, result=np.dtype("f4")) == exact.astype(np.float32)).all()


@examples
@given(x=numbers(np.float32), y=numbers(np.float32))
def test_comparisons_of_numbers_that_may_be_nan(x, y):
    x[0], y[0] = np.nan, 1
    unordered = np.isnan(x) | np.isnan(y)
    for name, wanted in (("lt", x < y), ("ne", (x != y) & ~unordered), ("neu", x != y), ("leu", ~(x > y))):
        assert (compute(f"setp.{name}.f32", x, y, result=np.dtype(bool)) == wanted).all(), name
    assert (compute("setp.num.f32", x, y, result=np.dtype(bool)) == ~unordered).all()


@examples
@given(x=numbers(np.float32), y=numbers(np.float32))
def test_extremes_leave_nan_out_unless_told(x, y):
    x[0], y[0] = np.nan, 1
    assert compute("max.f32", x, y, result=np.dtype("f4"))[0] == 1
    assert np.isnan(compute("max.NaN.f32", x, y, result=np.dtype("f4"))[0])
    assert np.array_equal(compute("min.f32", x, y, result=np.dtype("f4")), np.fmin(x, y), equal_nan=True)


@examples
@given(x=numbers(np.float32))
def test_integers_of_floats_end_at_their_limits(x):
    x[:3] = np.nan, np.inf, -np.inf
    found = compute("cvt.rzi.s32.f32", x, result=np.dtype("i4"))
    for ours, given_ in zip(found, x):
        wanted = (
            0
            if np.isnan(given_)
            else max(-(2**31), min(2**31 - 1, int(np.clip(np.trunc(np.float64(given_)), -1e18, 1e18))))
        )
        assert ours == wanted


@examples
@given(x=ordinary())
def test_approximations_err_and_not_more_than_documented(x):
    exact = np.sqrt(np.abs(x).astype(np.float64))
    found = compute("sqrt.approx.f32", np.abs(x), result=np.dtype("f4"))
    assert (np.abs(found - exact) <= exact * (2.0**-23 + 2.0**-24)).all()
    again = compute("sqrt.approx.f32", np.abs(x), result=np.dtype("f4"))
    assert (found == again).all()


def test_approximations_are_not_exact():
    x = np.linspace(0.1, 1.9, THREADS, dtype=np.float32)
    assert (compute("ex2.approx.f32", x, result=np.dtype("f4")) != np.exp2(x.astype(np.float64)).astype("f4")).any()
    assert (compute("ex2.approx.f32", np.arange(32, dtype="f4"), result=np.dtype("f4")) == 2.0 ** np.arange(32)).all()


def test_subnormal_numbers_are_flushed_where_it_is_asked_for():
    x = np.full(THREADS, 1e-40, np.float32)
    assert (compute("sqrt.approx.ftz.f32", x, result=np.dtype("f4")) == 0).all()
    assert (compute("sqrt.approx.f32", x, result=np.dtype("f4")) > 0).all()


@examples
@given(x=numbers(np.uint32), y=numbers(np.uint32))
def test_registers_are_packed_and_unpacked(x, y):
    body = """
    ld.global.b32 %r1, [%rd10];
    ld.global.b32 %r2, [%rd11];
    mov.b64 %rd30, {%r1, %r2};
    mov.b64 {%r3, %r4}, %rd30;
    st.global.b64 [%rd12], %rd30;
    st.global.b32 [%rd10], %r4;
    """
    (swapped, _, packed), problems = execute(body, x, y, np.zeros(THREADS, np.uint64))
    assert problems == set()
    assert packed.tolist() == [int(b) << 32 | int(a) for a, b in zip(x, y)]
    assert (swapped == y).all()


@examples
@given(x=numbers(np.uint32), k=st.integers(0, 31))
def test_lanes_exchange_registers(x, k):
    lane = np.arange(THREADS)
    for mode, clamp, source in (
        ("bfly", 31, lane ^ k),
        ("idx", 31, np.full(THREADS, k)),
        ("down", 31, np.where(lane + k < 32, lane + k, lane)),
        ("up", 0, np.where(lane - k >= 0, lane - k, lane)),
    ):
        found = compute(f"shfl.sync.{mode}.b32", x, str(k), result=np.dtype("u4"), more=f"{clamp}, -1")
        assert (found == x[source]).all(), mode


@examples
@given(x=numbers(np.int32))
def test_warps_are_reduced(x):
    total = compute("redux.sync.add.s32", x, result=np.dtype("i4"), more="-1")
    assert (total == wrapped(sum(map(int, x)), np.dtype("i4"))).all()
    assert (compute("redux.sync.min.s32", x, result=np.dtype("i4"), more="-1") == x.min()).all()


def a_fragment(matrix):
    """[16, K] as mma's documentation lays it out: lane l holds, of each block of 8 rows and 8 columns, row l/4 and
    columns 2 (l%4) and the next; blocks go down first."""
    blocks = [matrix[8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for c in range(matrix.shape[1] // 8) for r in range(2)]
    return [np.ascontiguousarray(block).view(np.uint32).reshape(-1) for block in blocks]


@examples
@given(seed=st.integers(0, 2**32 - 1))
def test_matrices_are_multiplied(seed):
    generator = np.random.default_rng(seed)
    A, B = (generator.integers(-8, 9, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    C = generator.integers(-8, 9, (16, 8)).astype(np.float32)
    lines = [f"ld.global.b32 %r{i}, [%rd{10 + i}];" for i in range(4)]
    columns = [np.ascontiguousarray(B.T[:, 8 * c : 8 * c + 8]).view(np.uint32).reshape(-1) for c in range(2)]
    lines += [f"ld.global.b32 %r{4 + i}, [%rd{14 + i}];" for i in range(2)]
    lines.append("ld.global.v2.b32 {%r6, %r7}, [%rd20];\nld.global.v2.b32 {%r8, %r9}, [%rd20 + 256];")
    lines.append(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r10, %r11, %r12, %r13}, {%r0, %r1, %r2, %r3}, "
        "{%r4, %r5}, {%r6, %r7, %r8, %r9};"
    )
    lines.append("st.global.v2.b32 [%rd20], {%r10, %r11};\nst.global.v2.b32 [%rd20 + 256], {%r12, %r13};")
    body = "mad.wide.u32 %rd20, %r50, 8, %rd6;\n" + "\n".join(lines)
    after, problems = execute(body, *a_fragment(A), *columns, C)
    assert problems == set()
    assert (after[-1] == A.astype(np.float32) @ B.astype(np.float32) + C).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_pass_through_shared_memory(transposed):
    """Four 8x8 matrices, a row each lane; what lane l gets is what mma's fragments hold."""
    x = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)
    trans = ".trans" if transposed else ""
    body = f"""
    shl.b32 %r1, %r50, 4;
    mad.wide.u32 %rd20, %r50, 16, %rd0;
    ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%rd20];
    st.shared.v4.b32 [%r1], {{%r2, %r3, %r4, %r5}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r6, %r7, %r8, %r9}}, [%r1];
    mad.wide.u32 %rd21, %r50, 16, %rd1;
    st.global.v4.b32 [%rd21], {{%r6, %r7, %r8, %r9}};
    bar.sync 0;
    stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r1], {{%r6, %r7, %r8, %r9}};
    bar.sync 0;
    ld.shared.v4.b32 {{%r2, %r3, %r4, %r5}}, [%r1];
    st.global.v4.b32 [%rd20], {{%r2, %r3, %r4, %r5}};
    """
    (back, fragments), problems = execute(body, x, np.zeros((32, 8), np.uint16), shared=512)
    assert problems == set()
    assert (back == x).all()
    matrices = x.reshape(4, 8, 8).swapaxes(1, 2) if transposed else x.reshape(4, 8, 8)
    for lane in range(32):
        pairs = matrices[:, lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
        assert (fragments[lane].reshape(4, 2) == pairs).all()


@pytest.mark.parametrize(
    "body",
    ["frobnicate.f32 %r1, %r2;", "add.rm.f32 %r1, %r2, %r3;", "ld.global.nc.b32 %r1, [%rd10];", "bar.sync 1, 64;"],
)
def test_what_is_not_known_is_named(body):
    with pytest.raises(UnknownPTX, match=rf"PTX line \d+: {body.split()[0]}"):
        execute(body, np.zeros(32, np.float32))
