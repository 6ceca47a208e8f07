"""Who is next: fair to clients, to short clips and to long ones."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra `serve`: pip install 'videomar[serve]'")

from hypothesis import given
from hypothesis import strategies as st

from videomar.serving.jobs import Job
from videomar.serving.making.order import Turns, entering
from videomar.serving.settings import Limits

BLANK = Job("", "", "", "{}", 0, 24.0, 9, 16, 16, 4, 1, "tiny", 0.0)


def jobs(clients: str) -> list[Job]:
    return [dataclasses.replace(BLANK, id=str(i), client=c, number=i) for i, c in enumerate(clients, 1)]


def order(waiting: str, busy: str = "") -> str:
    return " ".join(f"{job.client}{job.id}" for job in entering(jobs(waiting), jobs(busy)))


def test_one_client_is_served_in_order() -> None:
    assert order("aaa") == "a1 a2 a3"


def test_clients_take_turns_whatever_they_have_asked_for() -> None:
    assert order("aaaabb") == "a1 b5 a2 b6 a3 a4"


def test_who_has_clips_in_flight_comes_after_who_has_none() -> None:
    assert order("aab", busy="a") == "b3 a1 a2"


def test_a_job_under_which_a_server_died_lets_ten_later_ones_pass_each_time() -> None:
    first, *others = jobs("a" * 25)
    for deaths in range(3):
        entered = entering([dataclasses.replace(first, attempts=deaths), *others], [])
        assert [job.number for job in entered].index(1) == 10 * deaths
    assert entering([dataclasses.replace(first, attempts=4, parked=4), *others], [])[0].number == 1


def test_deaths_in_a_row_leave_every_job_far_from_being_given_up() -> None:
    """Two clips in flight, three new jobs between deaths, and none ever finished in between."""
    waiting: list[Job] = []
    for death in range(20):
        waiting += [dataclasses.replace(BLANK, id=str(n), number=n) for n in range(3 * death + 1, 3 * death + 4)]
        for job in entering(waiting, [])[:2]:
            waiting[waiting.index(job)] = dataclasses.replace(job, attempts=job.attempts + 1)
    assert max(job.attempts for job in waiting) <= Limits().attempts // 2


@given(st.text("abc", max_size=12), st.text("abc", max_size=4))
def test_every_job_enters_once_and_each_clients_in_their_order(waiting: str, busy: str) -> None:
    entered = entering(jobs(waiting), jobs(busy))
    assert sorted(job.number for job in entered) == list(range(1, len(waiting) + 1))
    for client in "abc":
        numbers = [job.number for job in entered if job.client == client]
        assert numbers == sorted(numbers)


@given(st.text("ab", min_size=1, max_size=12))
def test_the_shares_of_two_clients_who_both_wait_never_differ_by_more_than_one(waiting: str) -> None:
    left = {client: waiting.count(client) for client in "ab"}
    had = {"a": 0, "b": 0}
    for job in entering(jobs(waiting), []):
        had[job.client] += 1
        left[job.client] -= 1
        if all(left.values()):
            assert abs(had["a"] - had["b"]) <= 1


def test_nobody_in_flight_is_nobodys_turn() -> None:
    assert Turns().next() is None


def test_equal_clips_alternate_from_the_first() -> None:
    turns, got = Turns(), ""
    for id in "ab":
        turns.enter(id)
    for _ in range(6):
        got += turns.next() or ""
        turns.spend(got[-1], 1.0)
    assert got == "ababab"


def test_a_short_clip_that_comes_late_is_done_long_before_a_long_one() -> None:
    turns = Turns()
    turns.enter("long")
    for _ in range(500):
        turns.spend("long", 1.0)
    turns.enter("short")
    got = []
    for _ in range(20):
        id = turns.next() or ""
        got.append(id)
        turns.spend(id, 1.0)
    assert got.count("short") == 10


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 30)), min_size=2, max_size=5))
def test_no_clip_is_more_than_one_step_ahead_of_another_and_all_end(clips: list[tuple[float, int]]) -> None:
    """clips: seconds a step, steps."""
    turns, left, had = Turns(), [steps for _, steps in clips], [0.0] * len(clips)
    for i in range(len(clips)):
        turns.enter(str(i))
    while (id := turns.next()) is not None:
        i = int(id)
        turns.spend(id, clips[i][0])
        had[i], left[i] = had[i] + clips[i][0], left[i] - 1
        alive = [k for k in range(len(clips)) if left[k]]
        if not left[i]:
            turns.leave(id)
        for k in alive:
            assert had[i] - had[k] <= clips[i][0] + 1e-9
    assert not any(left)
