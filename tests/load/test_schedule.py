"""What is sent in a round is decided before it starts, and is the same in every arm."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfkit.base.errors import UsageError
from perfkit.config import Request, Scenario
from perfkit.load.schedule import Draw, batches, fill, http_message

ROWS = {"ids": [{"id": n} for n in range(20)]}


def scenario(**values) -> Scenario:
    return Scenario(name="s", label="", send=("one",), **values)


def message(name: str) -> dict:
    return {"item": name}


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
def test_every_user_of_every_batch_sends_its_requests(users, requests, count):
    plan = batches(scenario(users=users, requests=requests, batches=count), message)
    assert [len(batch.queues) for batch in plan] == [users] * count
    assert {len(queue) for batch in plan for queue in batch.queues} == {requests}
    assert all(batch.counted and not batch.full_only for batch in plan)


def test_a_ramp_up_joins_users_one_by_one_and_counts_full_concurrency_only():
    plan = batches(scenario(users=5, requests=8, ramp=True), message)
    assert [(len(b.queues), b.counted, b.full_only) for b in plan] == [
        (1, False, False), (2, False, False), (3, False, False), (4, False, False), (5, True, True),
    ]  # fmt: skip


def test_warm_batches_come_first_and_do_not_count():
    plan = batches(scenario(warm=2, requests=3), message)
    assert [(b.counted, len(b.queues[0])) for b in plan] == [(False, 1), (False, 1), (True, 3)]


def test_two_draws_with_the_same_seed_give_the_same_sequence_and_another_seed_does_not():
    one, same, other = (Draw(ROWS, seed) for seed in ("1/0", "1/0", "1/1"))
    first = [one("ids")["id"] for _ in range(20)]
    assert first == [same("ids")["id"] for _ in range(20)]
    assert first != [other("ids")["id"] for _ in range(20)]


def test_a_draw_from_the_end_meets_one_from_the_start_only_when_the_rows_run_out():
    forward, backward = Draw(ROWS, "1"), Draw(ROWS, "1", last_first=True)
    drawn = [draw("ids")["id"] for _ in range(10) for draw in (forward, backward)]
    assert sorted(drawn) == list(range(20))


@given(st.integers(1, 60))
def test_no_row_is_drawn_twice_before_all_were_drawn_once(n):
    draw = Draw(ROWS, "1")
    counts = Counter(draw("ids")["id"] for _ in range(n))
    assert max(counts.values()) - min(counts.get(i, 0) for i in range(20)) <= 1


def test_placeholders_keep_the_type_of_the_value_they_stand_for():
    row = {"id": 7, "name": "a b/c", "a.org_id": "x"}
    assert fill({"id": "{id}", "text": "no. {id}", "deep": ["{a.org_id}", None, 3]}, row) == {
        "id": 7, "text": "no. 7", "deep": ["x", None, 3],
    }  # fmt: skip


def test_placeholders_in_a_path_are_encoded():
    request = Request(name="r", path="/x/{name}?q={id}", parameters="p")
    assert http_message(request, {"id": 7, "name": "a b/c"})["path"] == "/x/a%20b%2Fc?q=7"


def test_a_column_that_is_missing_is_named():
    request = Request(name="r", path="/{nope}", parameters="p")
    with pytest.raises(UsageError, match=r"request 'r': \{nope\} is not a column .*; expected one of: id"):
        http_message(request, {"id": 1})


@given(st.text())
def test_text_of_a_row_is_never_expanded_again(text):
    assert fill("{name}", {"name": text}) == text
    json.dumps(fill({"a": "x{name}"}, {"name": text}))
