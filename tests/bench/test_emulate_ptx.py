"""PTX is read into a program, and its threads go where its branches say."""

import numpy as np
import pytest
from emulated import execute, module

from firebolt_vl.bench.emulate.ptx import Address, UnknownPTX, Vector, parse

BODY = """
\t.loc\t1 64 18                         // triton_film.py:64:18
\t.loc\t4 38 14, function_name $L__info_string0, inlined_at 1 64 18 // triton_rows.py:38:14
\t// begin inline asm
\tmov.u32 %r1, 0x0;
\t@!%p1 ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 8 ];

\t// end inline asm
$L__BB0_1:
\tadd.s32 \t%r3, %r1, -5; add.s32 %r3, %r3, 1;
"""


def parsed(body):
    return parse(module(body, [np.zeros(32)]))


def test_instructions_have_operands_predicates_and_lines():
    program = parsed(BODY)
    load = next(one for one in program.instructions if one.opcode == "ld.global.v2.b32")
    assert load.operands == (Vector(("%r1", "%r2")), Address("%rd1", 8))
    assert (load.predicate, load.negated, load.source) == ("%p1", True, "triton_rows.py:38")
    text = module(BODY, [np.zeros(32)]).splitlines()
    assert "@!%p1" in text[load.line - 1]
    assert str(load).startswith(f"PTX line {load.line}, triton_rows.py:38: @!%p1 ld.global")


def test_labels_name_the_instruction_that_follows():
    program = parsed(BODY)
    following = program.instructions[program.labels["$L__BB0_1"]]
    assert following.operands == ("%r3", "%r1", "-5")


def test_the_head_has_parameters_registers_and_threads():
    program = parsed("")
    assert program.parameters == {"toy_kernel_param_0": "u64"}
    assert (program.registers["%p19"], program.registers["%rd59"]) == ("pred", "b64")
    assert (program.name, program.threads) == ("toy_kernel", 32)


def test_blocks_have_registers_and_labels_of_their_own():
    """Inline assembly that waits in a loop comes several times in one kernel."""
    block = """
    {{
    .reg .pred complete;
    .reg .b32 count;
    mov.u32 count, 0;
    again:
    add.s32 count, count, 1;
    setp.ge.s32 complete, count, {most};
    @complete bra.uni done;
    bra.uni again;
    done:
    st.global.b32 [%rd10 + {place}], count;
    }}
    """
    body = block.format(most=3, place=0) + block.format(most=5, place=128)
    (x,), problems = execute(body, np.zeros(64, np.uint32))
    assert problems == set()
    assert (x.reshape(2, 32) == [[3], [5]]).all()


@pytest.mark.parametrize("body", ["MOV %r1, 0;", "ld.global.b32 %r1, [%rd1 * 2];"])
def test_what_is_no_ptx_is_refused(body):
    with pytest.raises(UnknownPTX):
        parsed(body)


def test_threads_part_and_meet_again():
    """Odd lanes take the longer way; each lane turns in its loop as often as its number says."""
    body = """
    and.b32 %r1, %r50, 1;
    setp.eq.b32 %p1, %r1, 0;
    mov.u32 %r2, 0;
    @%p1 bra $L__even;
    add.s32 %r2, %r2, 100;
    $L__even:
    mov.u32 %r3, 0;
    $L__loop:
    setp.ge.u32 %p2, %r3, %r50;
    @%p2 bra $L__done;
    add.s32 %r3, %r3, 1;
    add.s32 %r2, %r2, 1;
    bra.uni $L__loop;
    $L__done:
    redux.sync.max.u32 %r4, %r2, -1;
    add.s32 %r2, %r2, %r4;
    st.global.b32 [%rd10], %r2;
    """
    (x,), problems = execute(body, np.zeros(32, np.uint32))
    assert problems == set()
    lane = np.arange(32)
    assert (x == lane + 100 * (lane % 2) + 131).all()


def test_a_warp_in_parts_does_nothing_as_one():
    body = "setp.lt.u32 %p1, %r50, 7;\n@%p1 redux.sync.max.u32 %r4, %r50, -1;"
    with pytest.raises(UnknownPTX, match="a part of a warp"):
        execute(body, np.zeros(32))
