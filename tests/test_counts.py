"""`make counts` counts what it says, on a checkout small enough to be counted by hand."""

import counts
import pytest

KERNEL = """
import triton

@triton.jit
def scaled(x, factor):
    return x * factor

@triton.jit
def kernel(x_ptr, y_ptr, factor, BLOCK: tl.constexpr):
    x = tl.load(x_ptr)
    tl.store(y_ptr, scaled(x, factor))
"""
SIX = "\n".join(f"        a{i} = {i}" for i in range(6))
METHODS = f"""
class A:
    def first(self, a, b, *rest, c=1, **more):
{SIX}

    def second(self):
{SIX}
        return a5
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "triton.py").write_text(KERNEL)
    (tmp_path / "kernels" / "methods.py").write_text(METHODS)
    (tmp_path / "README.md").write_text("one\ntwo\n")
    return tmp_path


def test_a_triton_function_that_kernels_call_is_a_helper(checkout):
    kinds = {one.name.split(": ")[1]: one.kind for one in counts.functions(counts.sources(checkout))}
    assert kinds == {"scaled": "helper", "kernel": "kernel", "first": "function", "second": "function"}


def test_parameters_are_those_that_a_caller_gives(checkout):
    found = {one.name.split(": ")[1]: one.parameters for one in counts.functions(counts.sources(checkout))}
    assert found == {"scaled": 2, "kernel": 4, "first": 5, "second": 0}


def test_a_block_that_stands_twice_is_two_repeated_blocks(checkout):
    assert counts.repeated(counts.sources(checkout)) == (2, 12)


def test_five_equal_lines_are_no_block(tmp_path):
    five = "\n".join(f"a{i} = {i}" for i in range(5))
    files = [("one.py", f"{five}\nb = 0\n"), ("two.py", f"{five}\nc = 0\n")]
    assert counts.repeated(files) == (0, 0)


def test_checkouts_stand_beside_each_other(checkout):
    table = counts.counts(checkout, with_types=False)
    assert table["lines of README"] == "2"
    lines = counts.markdown([table, table], ["before", "after"]).splitlines()
    assert lines[0] == "|  | before | after |"
    assert len(lines) == len(table) + 2
