"""Lifetimes and the arena, against hand-worked cases and a naive allocator that remembers every byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.plan.arena import ALIGNMENT, Arena, Ideal
from videomar.plan.tape import Tape

KIB = 1 << 10


def test_a_value_lives_from_where_it_is_made_to_its_last_use() -> None:
    tape = Tape("fp32")
    a = tape.compute(256, tape.given(256))  # 1 KiB each
    b = tape.compute(256, a)
    tape.compute(256, a, b)  # a, b and this: three at once
    assert tape.peak(Ideal) == 3 * KIB


def test_what_the_caller_owns_takes_nothing() -> None:
    tape = Tape("fp32")
    tape.move(10**9, tape.given(10**9), bound=True)
    assert tape.peak(Ideal) == tape.peak(Arena) == 0


def test_scratch_counts_while_the_operator_runs_and_no_longer() -> None:
    tape = Tape("fp32")
    a = tape.compute(256, scratch=1024)
    tape.compute(256, a)
    assert tape.peak(Ideal) == 1 * KIB + 4 * KIB


def test_writing_in_place_takes_nothing_only_if_the_input_ends_there() -> None:
    for reads_again, most in ((False, 1), (True, 2)):
        tape = Tape("fp32")
        a = tape.compute(256)
        b = tape.compute(256, a, in_place=True)
        if reads_again:
            tape.move(0, a, b)
        assert tape.peak(Ideal) == most * KIB


def test_an_fp16_graph_on_a_cpu_holds_both_widths_between_operators() -> None:
    for mode, most in (("fp32", 4 + 4), ("fp16", 2 + 2), ("fp16-as-fp32", 4 + 4)):
        tape = Tape(mode)
        x = tape.move(KIB, tape.given(KIB))
        tape.compute(KIB, x)
        assert tape.peak(Ideal) == most * KIB, mode
    assert [Tape(m).weight_width for m in ("fp32", "fp16", "fp16-as-fp32")] == [4, 2, 4]


def test_a_product_counts_two_operations_a_weight_and_row() -> None:
    tape = Tape("fp32")
    tape.linear(3, 5, 7, tape.given(15), bias=True)
    assert (tape.params, tape.linear_params, tape.flops) == (5 * 7 + 7, 5 * 7, 2 * 3 * 5 * 7 + 3 * 7)


def test_the_arena_reserves_doubling_regions_and_counts_what_was_touched() -> None:
    arena = Arena()
    first = arena.take(100)
    assert arena.peak == ALIGNMENT
    arena.take(900 * KIB)  # beside it, in the first region of a MiB
    assert arena.peak == ALIGNMENT + 900 * KIB
    arena.take(1500 * KIB)  # the second region, of 2 MiB
    arena.give(first)
    arena.take(10)  # where the first was
    assert arena.peak == ALIGNMENT + 2400 * KIB


def test_freed_neighbours_become_one_chunk() -> None:
    arena = Arena()
    chunks = [arena.take(200 * KIB) for _ in range(5)]
    for i in (1, 3, 2):
        arena.give(chunks[i])
    arena.take(600 * KIB)
    assert arena.peak == 1000 * KIB


def test_a_chunk_of_less_than_twice_the_size_is_not_split() -> None:
    arena = Arena()
    arena.give(arena.take(512 * KIB))  # one MiB, whole again
    arena.take(600 * KIB)
    arena.take(400 * KIB)  # would have fitted behind it, but the first took all: a new region
    assert len(arena._regions) == 2


class Bytewise:
    """Every byte of every region marked by hand; finds overlaps that a wrong arena would make."""

    def __init__(self) -> None:
        self.arena, self.marks = Arena(), {}

    def take(self, size: int) -> int:
        handle = self.arena.take(size)
        _, region, offset = self.arena._used[handle]
        marks = self.marks.setdefault(region, np.zeros(self.arena._regions[region][0] // ALIGNMENT, bool))
        part = slice(offset // ALIGNMENT, offset // ALIGNMENT + -(-max(size, 1) // ALIGNMENT))
        assert not marks[part].any(), "two values share memory"
        marks[part] = True
        return handle

    def give(self, handle: int) -> None:
        length, region, offset = self.arena._used[handle]
        self.marks[region][offset // ALIGNMENT : (offset + length) // ALIGNMENT] = False
        self.arena.give(handle)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3 << 20), st.booleans(), st.integers(0, 1000)), max_size=60))
def test_nothing_that_lives_at_the_same_time_overlaps(steps: list[tuple[int, bool, int]]) -> None:
    allocator, ideal, held = Bytewise(), Ideal(), []
    for size, frees, which in steps:
        if frees and held:
            ours, theirs = held.pop(which % len(held))
            allocator.give(ours), ideal.give(theirs)
        else:
            held.append((allocator.take(size), ideal.take(size)))
    assert allocator.arena.peak >= ideal.peak
    for ours, _ in held:
        allocator.give(ours)
    assert all(length == allocator.arena._regions[r][0] for length, r, _ in allocator.arena._free)


@pytest.mark.parametrize("mode", ["fp32", "fp16", "fp16-as-fp32"])
def test_a_run_gives_back_all_it_took(mode: str) -> None:
    tape, allocator = Tape(mode), Ideal()
    x = tape.pointwise(tape.linear(4, 8, 8, tape.given(32), bias=True), steps=3)
    tape.view(32, tape.move(32, x), x)
    tape.run(allocator)
    assert allocator.now == 0 and allocator.peak > 0
