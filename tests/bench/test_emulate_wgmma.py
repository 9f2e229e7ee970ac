"""Asynchronous products of four warps: operands in shared memory as descriptors say, fences, and waiting."""

import numpy as np
import pytest
from emulated import execute

WIDTH, DEPTH = 16, 16
BODY = """
    mul.wide.u32 %rd20, %r50, {bytes};
    add.s64 %rd20, %rd1, %rd20;
    mul.lo.u32 %r1, %r50, {bytes};
    ld.global.b{bits} %{kind}30, [%rd20];
    st.shared.b{bits} [%r1], %{kind}30;
    {fence}
    bar.sync 0;
    mad.wide.u32 %rd21, %r50, 16, %rd0;
    ld.global.v4.b32 {{%r20, %r21, %r22, %r23}}, [%rd21];
    mov.u64 %rd30, {descriptor};
    mov.pred %p1, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {{%r2, %r3, %r4, %r5, %r6, %r7, %r8, %r9}},
        {{%r20, %r21, %r22, %r23}}, %rd30, %p1, 1, 1, {turned};
    wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {{%r2, %r3, %r4, %r5, %r6, %r7, %r8, %r9}},
        {{%r20, %r21, %r22, %r23}}, %rd30, 1, 1, 1, {turned};
    wgmma.commit_group.sync.aligned;
    {before}
    {wait}
    mad.wide.u32 %rd22, %r50, 32, %rd2;
    st.global.v4.b32 [%rd22], {{%r2, %r3, %r4, %r5}};
    st.global.v4.b32 [%rd22 + 16], {{%r6, %r7, %r8, %r9}};
"""


def swizzled(rows, span):
    """Rows of `span` bytes as they lie in shared memory: pieces of 16 bytes change places by the row's number."""
    pieces = rows.view(np.uint8).reshape(len(rows), span // 16, 16)
    found = np.empty_like(pieces)
    for row in range(len(rows)):
        for piece in range(span // 16):
            found[row, piece ^ (row * span // 128 % (span // 16))] = pieces[row, piece]
    return found.reshape(-1)


def product(turned=False, span=32, fence="fence.proxy.async.shared::cta;", wait="0", before=""):
    """2 A B for random A [64,16], B [16,16] of small integers, as the program finds it and as it is."""
    generator = np.random.default_rng(span + turned)
    A, B = (generator.integers(-4, 5, shape).astype(np.float16) for shape in ((64, DEPTH), (DEPTH, WIDTH)))
    a = [
        A[16 * warp + lane // 4 + 8 * (i % 2), 2 * (lane % 4) + 8 * (i // 2) :][:2]
        for warp in range(4)
        for lane in range(32)
        for i in range(4)
    ]
    rows = np.zeros((16, span // 2), np.float16)
    rows[:, :16] = B if turned else B.T
    image = swizzled(rows, span)
    stride = 8 * span
    mode = {128: 1, 64: 2, 32: 3}[span]
    bits = len(image) // 128 * 8
    body = BODY.format(
        bytes=bits // 8,
        bits=bits,
        kind={32: "r", 64: "rd"}[bits],
        descriptor=hex(mode << 62 | stride >> 4 << 32),
        turned=int(turned),
        fence=fence,
        wait=f"wgmma.wait_group.sync.aligned {wait};" if wait else "",
        before=before,
    )
    found = np.zeros((128, 8), np.float32)
    (_, _, found), problems = execute(body, np.array(a), image, found, threads=128, shared=len(image))
    D = np.zeros((64, WIDTH), np.float32)
    for thread in range(128):
        for i in range(8):
            row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
            D[row, 8 * (i // 4) + 2 * (thread % 4) + i % 2] = found[thread, i]
    return D, 2 * A.astype(np.float32) @ B.astype(np.float32), problems


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("span", [32, 64])
def test_a_product_of_what_lies_in_shared_memory(span, turned):
    found, wanted, problems = product(turned, span)
    assert problems == set()
    assert (found == wanted).all()


@pytest.mark.parametrize("wait", ["", "1"])
def test_sums_are_there_when_they_were_waited_for(wait):
    found, _, _ = product(wait=wait)
    assert np.isnan(found).all()


def test_a_fence_lets_products_see_what_was_written():
    assert product(fence="")[2] == {"a product reads what was written without a fence"}


def test_operands_stay_until_the_product_is_done():
    found = product(before="st.shared.b32 [%r1], 0;")[2]
    assert "overwrites what a product reads that was not waited for" in found
