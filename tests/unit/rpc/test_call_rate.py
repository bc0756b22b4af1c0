"""The token buckets, by a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlarl.rpc.rate import CallRate, host_of


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_rate_then_a_rest_fills_the_bucket_again() -> None:
    clock = Clock()
    rate = CallRate(2.0, 3, clock=clock)
    assert [rate.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    clock.now += 0.2
    assert rate.take("a") == pytest.approx(0.3)
    clock.now += 0.3
    assert rate.take("a") == 0
    assert rate.take("a") == pytest.approx(0.5)
    clock.now += 1000
    assert [rate.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]


def test_whoever_waits_as_told_is_let_in() -> None:
    clock = Clock()
    rate = CallRate(3.0, 1, clock=clock)
    assert rate.take("a") == 0
    for _ in range(1000):
        clock.now += rate.take("a")
        assert rate.take("a") == 0


def test_callers_are_counted_apart() -> None:
    rate = CallRate(1.0, 1, clock=Clock())
    assert rate.take("a") == 0
    assert rate.take("b") == 0
    assert rate.take("a") == 1
    assert rate.take("b") == 1


def test_a_refused_call_costs_nothing() -> None:
    clock = Clock()
    rate = CallRate(1.0, 1, clock=clock)
    rate.take("a")
    for _ in range(100):
        assert rate.take("a") == 1
    clock.now += 1
    assert rate.take("a") == 0


def test_of_many_callers_those_that_called_last_are_remembered() -> None:
    rate = CallRate(1.0, 1, max_callers=3, clock=Clock())
    for caller in ("a", "b", "c", "d"):
        assert rate.take(caller) == 0
    assert len(rate) == 3
    assert rate.take("d") == 1
    assert rate.take("b") == 1
    assert rate.take("a") == 0, "it was forgotten"
    for number in range(1000):
        rate.take(str(number))
    assert len(rate) == 3


@given(
    per_second=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 3), max_size=200),
)
def test_no_caller_gets_more_than_burst_and_rate(
    per_second: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    rate = CallRate(per_second, burst, clock=clock)
    allowed = 0
    for pause in pauses:
        clock.now += pause
        allowed += rate.take("a") == 0
        assert allowed <= burst + (clock.now - 1000) * per_second + 1e-3


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::/64"),
        ("unix:", "unix"),
    ],
)
def test_a_peer_is_known_by_its_host(peer: str, host: str) -> None:
    assert host_of(peer) == host
