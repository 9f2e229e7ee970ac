"""Each check of the emulator finds a small program with the mistake, and says nothing of the one without it."""

import numpy as np
import pytest
from emulated import execute

ZEROS = np.zeros(128, np.float32)
# A warp each: threads pass their numbers through shared memory to those of the other warp.
EXCHANGE = """
    ld.global.b32 %r1, [%rd10];
    shl.b32 %r2, %r50, 2;
    st.shared.b32 [%r2], %r1;
    {barrier}
    xor.b32 %r3, %r2, {partner};
    ld.shared.b32 %r4, [%r3];
    {second}
    {last}
    st.global.b32 [%rd11], %r4;
"""
COPY = """
    shl.b32 %r2, %r50, 2;
    cp.async.ca.shared.global [%r2], [%rd10], 0x4, 4;
    cp.async.commit_group;
    {wait}
    {barrier}
    xor.b32 %r3, %r2, 128;
    ld.shared.b32 %r4, [%r3];
    st.global.b32 [%rd11], %r4;
"""


def exchange(barrier="bar.sync 0;", partner=128, second="", last=""):
    x = np.arange(64, dtype=np.uint32)
    body = EXCHANGE.format(barrier=barrier, partner=partner, second=second, last=last)
    (_, y), problems = execute(body, x, np.zeros(64, np.uint32), threads=64, shared=256)
    return y, problems


class TestBarriers:
    def test_with_a_barrier_numbers_arrive(self):
        y, problems = exchange()
        assert problems == set()
        assert (y == np.arange(64) ^ 32).all()

    def test_without_one_it_is_a_race(self):
        _, problems = exchange(barrier="")
        assert problems == {"reads shared memory that another warp wrote, with no barrier between"}

    def test_within_a_warp_none_is_needed(self):
        _, problems = exchange(barrier="", partner=4)
        assert problems == set()

    def test_memory_that_was_read_is_not_overwritten_without_one(self):
        again = "st.shared.b32 [%r2], %r4;"
        assert exchange(last=again)[1] == {"overwrites shared memory that another warp read, with no barrier between"}
        assert exchange(second="bar.sync 0;", last=again)[1] == set()

    @pytest.mark.parametrize("used", [False, True])
    def test_a_read_that_races_is_found_where_it_matters(self, used):
        """Both warps read a number that one of them then replaces by another."""
        body = f"""
        setp.lt.u32 %p1, %r50, 32;
        and.b32 %r2, %r50, 31;
        mad.wide.u32 %rd20, %r2, 4, %rd0;
        ld.global.b32 %r3, [%rd20];
        add.s32 %r4, %r3, 1;
        @%p1 st.global.b32 [%rd20], %r4;
        {"st.global.b32 [%rd11], %r4;" if used else ""}
        """
        (x, _), problems = execute(body, np.arange(32, dtype=np.int32), np.zeros(64, np.int32), threads=64)
        assert (x == np.arange(32) + 1).all()
        race = {"overwrites global memory that another warp read, with no barrier between"}
        assert problems == (race if used else set())

    def test_two_warps_may_write_equal_values_to_one_byte_only(self):
        to_one_place = "and.b32 %r5, %r2, 127;\nbar.sync 0;\nst.shared.b32 [%r5], {value};"
        assert exchange(last=to_one_place.format(value=7))[1] == set()
        found = exchange(last=to_one_place.format(value="%r50"))[1]
        assert found == {"two warps write unlike values to one byte of shared memory at once"}

    def test_a_warp_after_the_other(self):
        """Warp 0 writes, then warp 1 does."""
        body = """
        setp.lt.u32 %p1, %r50, 32;
        and.b32 %r2, %r50, 31;
        shl.b32 %r2, %r2, 2;
        @%p1 st.shared.b32 [%r2], 1;
        {barrier}
        @!%p1 st.shared.b32 [%r2], 2;
        """
        race = "overwrites shared memory that another warp wrote, with no barrier between"
        for barrier, wanted in (("", {race}), ("bar.sync 0;", set())):
            assert execute(body.format(barrier=barrier), ZEROS, threads=64, shared=128)[1] == wanted

    def test_one_that_a_part_of_the_threads_reaches(self):
        body = """
        setp.lt.u32 %p1, %r50, 32;
        @%p1 bra $L__skip;
        bar.sync 0;
        $L__skip:
        """
        assert execute(body, ZEROS, threads=64)[1] == {"a barrier that not all threads reach"}


class TestCopies:
    @staticmethod
    def run(wait="cp.async.wait_group 0;", barrier="bar.sync 0;"):
        x = np.arange(64, dtype=np.uint32)
        body = COPY.format(wait=wait, barrier=barrier)
        (_, y), problems = execute(body, x, np.zeros(64, np.uint32), threads=64, shared=256)
        return y, problems

    def test_one_that_was_waited_for(self):
        y, problems = self.run()
        assert problems == set()
        assert (y == np.arange(64) ^ 32).all()

    @pytest.mark.parametrize("wait", ["", "cp.async.wait_group 1;"])
    def test_one_that_was_not(self, wait):
        assert "reads a copy that was not waited for" in self.run(wait)[1]

    def test_other_warps_see_it_after_a_barrier_that_follows_the_wait(self):
        race = {"reads shared memory that another warp wrote, with no barrier between"}
        assert self.run(barrier="")[1] == race
        assert self.run(wait="bar.sync 0;\ncp.async.wait_group 0;", barrier="")[1] == race

    def test_memory_is_not_overwritten_under_way(self):
        body = """
        shl.b32 %r2, %r50, 2;
        cp.async.ca.shared.global [%r2], [%rd10], 0x4, 4;
        cp.async.commit_group;
        st.shared.b32 [%r2], 0;
        cp.async.wait_group 0;
        """
        assert execute(body, ZEROS, shared=128)[1] == {"overwrites a copy that was not waited for"}

    def test_zeros_stand_for_what_is_not_read(self):
        body = """
        shl.b32 %r2, %r50, 2;
        setp.lt.u32 %p1, %r50, 7;
        selp.b32 %r3, 4, 0, %p1;
        add.s64 %rd30, %rd10, {beyond};
        selp.b64 %rd30, %rd10, %rd30, %p1;
        cp.async.ca.shared.global [%r2], [%rd30], 0x4, %r3;
        cp.async.commit_group;
        cp.async.wait_group 0;
        ld.shared.b32 %r4, [%r2];
        st.global.b32 [%rd11], %r4;
        """.replace("{beyond}", "1024")
        (_, y), problems = execute(body, np.ones(32, np.uint32), np.ones(32, np.uint32), shared=128)
        assert problems == set()
        assert y.tolist() == [1] * 7 + [0] * 25


class TestAddresses:
    @pytest.mark.parametrize("offset", [4, -4, 256])
    def test_one_beside_the_tensor(self, offset):
        outside = {"touches global memory outside of every tensor"}
        assert execute(f"ld.global.b32 %r1, [%rd10 + {offset}];", ZEROS[:32])[1] == outside
        assert execute(f"st.global.b32 [%rd10 + {offset}], 0;", ZEROS[:32])[1] == outside

    def test_the_last_element_is_inside(self):
        body = "setp.lt.u32 %p1, %r50, 31;\n@%p1 ld.global.b32 %r1, [%rd10 + 4];"
        assert execute(body, ZEROS[:32])[1] == set()

    def test_one_beside_shared_memory(self):
        body = "shl.b32 %r2, %r50, 2;\nst.shared.b32 [%r2], 0;"
        assert execute(body, ZEROS, shared=128)[1] == set()
        outside = {"touches shared memory outside of what the kernel has"}
        assert execute(body, ZEROS, shared=124)[1] == outside

    def test_a_register_below_zero_and_what_is_added_to_it_wrap_around(self):
        """LLVM writes [496 - a] where a number below 128 is swapped with 112 - a: the register has - a."""
        body = """
        shl.b32 %r2, %r50, 2;
        ld.global.b32 %r1, [%rd10];
        st.shared.b32 [%r2], %r1;
        sub.s32 %r3, 0, %r2;
        ld.shared.b32 %r4, [%r3 + {last}];
        st.global.b32 [%rd11], %r4;
        """
        x = np.arange(32, dtype=np.uint32)
        (_, y), problems = execute(body.replace("{last}", "124"), x, x, shared=128)
        assert problems == set()
        assert y.tolist() == x[::-1].tolist()
        outside = {"touches shared memory outside of what the kernel has"}
        for beyond in ("120", "128"):
            assert outside <= execute(body.replace("{last}", beyond), x, x, shared=128)[1]

    def test_one_that_is_not_aligned(self):
        found = execute("ld.global.v2.b32 {%r1, %r2}, [%rd0 + 4];", ZEROS)[1]
        assert found == {"an address is no multiple of the 8 bytes accessed"}


class TestNeverWritten:
    def test_shared_memory(self):
        body = "shl.b32 %r2, %r50, 2;\nld.shared.b32 %r1, [%r2];"
        assert execute(body, ZEROS, shared=128)[1] == {"reads shared memory that nothing wrote"}

    def test_shared_memory_of_the_program_before(self):
        body = "shl.b32 %r2, %r50, 2;\n{}\nst.shared.b32 [%r2], 0;"
        assert execute(body.format("ld.shared.b32 %r1, [%r2];"), ZEROS, shared=128, grid=(2,))[1] != set()
        assert execute(body.format(""), ZEROS, shared=128, grid=(2,))[1] == set()

    def test_global_memory(self):
        y = np.zeros(32, np.float32)
        body = "ld.global.b32 %r1, [%rd10];"
        assert execute(body, y, unwritten=[y])[1] == {"reads global memory that nothing wrote"}
        assert execute("st.global.b32 [%rd10], 0;\n" + body, y, unwritten=[y])[1] == set()


class TestPrograms:
    OWN = "mov.u32 %r1, %ctaid.x;\nmad.wide.u32 %rd30, %r1, {step}, %rd10;\n"

    def test_each_with_its_own_bytes(self):
        body = self.OWN.format(step=128) + "st.global.b32 [%rd30], %r1;\nld.global.b32 %r2, [%rd30];"
        (x,), problems = execute(body, np.zeros(128, np.uint32), grid=(4,))
        assert problems == set()
        assert (x.reshape(4, 32) == np.arange(4)[:, None]).all()

    @pytest.mark.parametrize("step", [0, 64, 124])
    def test_two_that_write_one_byte(self, step):
        body = self.OWN.format(step=step) + "st.global.b32 [%rd30], 0;"
        assert execute(body, ZEROS, grid=(2,))[1] == {"writes a byte that another program writes"}

    @pytest.mark.parametrize("seed", range(4))
    def test_one_that_reads_what_the_other_writes(self, seed):
        """In whichever order they run."""
        body = self.OWN.format(step=128) + "st.global.b32 [%rd30], 0;\nxor.b32 %r2, %r1, 1;\n"
        body += "mad.wide.u32 %rd31, %r2, 128, %rd10;\nld.global.b32 %r3, [%rd31];"
        found = execute(body, ZEROS, grid=(2,), seed=seed)[1]
        assert found == {"reads what another program writes", "writes what another program reads"}

    def test_one_that_writes_what_two_read(self):
        """The last to read it may be the writer itself."""
        body = "mov.u32 %r1, %ctaid.x;\nld.global.b32 %r2, [%rd10];\nsetp.eq.u32 %p1, %r1, 0;\n"
        body += "@%p1 st.global.b32 [%rd10], 0;"
        for seed in range(4):
            assert execute(body, ZEROS, grid=(3,), seed=seed)[1] & {
                "writes what another program reads",
                "reads what another program writes",
            }

    def test_all_may_read(self):
        assert execute("ld.global.b32 %r2, [%rd10];", ZEROS, grid=(3,))[1] == set()
