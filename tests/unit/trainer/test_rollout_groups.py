"""Groups of episodes: what is ordered, what is kept, and what becomes of those that are not."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from vlarl.config import CurriculumConfig, RunConfig, TasksConfig, TrainerConfig
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.collector import RolloutError
from vlarl_trainer.rollouts.curriculum import Curriculum
from vlarl_trainer.rollouts.groups import GroupPlan, Verdict, verdict_of
from vlarl_trainer.rollouts.orders import Ended
from vlarl_trainer.rollouts.plan import Review

GOLDEN = Path(__file__).parents[2] / "golden" / "groups.json"
SIZE, SLOTS, ATTEMPTS = 4, 3, 3
SUCCESS, FAILURE = rollout_pb2.OUTCOME_SUCCESS, rollout_pb2.OUTCOME_TIME_LIMIT

Play = Callable[[int, int, int], bool | None]
"""Of a slot, an attempt and a member: whether the episode succeeds; None: it is given up."""


def plan(**changes: object) -> GroupPlan:
    grpo = {"group_size": SIZE, "max_attempts": ATTEMPTS, "keep_between": (0.25, 0.75)}
    config = RunConfig(
        name="run",
        seed=3,
        tasks=TasksConfig(indices=(1, 4, 7)),
        trainer=TrainerConfig(
            algorithm="grpo", episodes_per_iteration=SIZE * SLOTS, grpo=grpo | changes
        ),
    )
    curriculum = Curriculum(config.tasks.indices, CurriculumConfig(kind="uniform"))
    return GroupPlan(config, curriculum, "key")


def place(spec: rollout_pb2.EpisodeSpec) -> tuple[int, int, int]:
    """Slot, attempt and member, of the id RUN:ITERATION:ATTEMPT:GROUP:MEMBER."""
    _, _, attempt, slot, member = spec.episode_id.split(":")
    return int(slot), int(attempt), int(member)


def played(
    spec: rollout_pb2.EpisodeSpec, success: bool, worth: float = 1.0
) -> rollout_pb2.Trajectory:
    return rollout_pb2.Trajectory(
        spec=spec,
        outcome=SUCCESS if success else FAILURE,
        scores=rollout_pb2.RewardScores(total=[0.0, worth * success]),
    )


def ended(specs: Sequence[rollout_pb2.EpisodeSpec], play: Play) -> Ended:
    results = [(spec, play(*place(spec))) for spec in specs]
    return Ended(
        [played(spec, success) for spec, success in results if success is not None],
        [spec for spec, success in results if success is None],
    )


def iteration(groups: GroupPlan, play: Play) -> tuple[list[str], Review]:
    """All that an iteration orders, as a collector would, and its review."""
    specs = groups.first(0)
    while len(more := groups.further(0, ended(specs, play))) > len(specs) - SIZE * SLOTS:
        specs = [*groups.first(0), *more]
    return [spec.episode_id for spec in specs], groups.review(0, ended(specs, play))


def half(slot: int, attempt: int, member: int) -> bool:
    return member < 2


def test_members_share_task_and_placement_and_differ_in_sampling() -> None:
    specs = plan().first(5)
    assert len(specs) == SIZE * SLOTS
    assert len({spec.episode_id for spec in specs}) == len({s.sampling_seed for s in specs}) == 12
    groups: dict[str, set[tuple[int, int]]] = {}
    for spec in specs:
        groups.setdefault(spec.group_id, set()).add((spec.task.index, spec.placement_seed))
        assert spec.episode_id.startswith(f"{spec.group_id}:")
        assert spec.temperature == TrainerConfig().temperature
        assert spec.record_frames
    assert list(groups) == ["run:00005:00:0000", "run:00005:00:0001", "run:00005:00:0002"]
    assert [len(shared) for shared in groups.values()] == [1, 1, 1]
    assert len({placement for shared in groups.values() for _, placement in shared}) == SLOTS


def test_an_order_is_a_function_of_its_place_alone() -> None:
    """Not of how many groups there are beside it, of its members, or of the other attempts."""
    drop_all: Play = lambda *_: False  # noqa: E731
    specs = plan().further(5, ended(plan().first(5), drop_all))
    (spec,) = [one for one in specs if one.episode_id == "run:00005:01:0002:03"]
    alone = [
        rollout_pb2.EpisodeSpec(episode_id=f"run:00005:00:0002:{member:02d}", group_id=group)
        for member, group in enumerate(["run:00005:00:0002"] * SIZE)
    ]
    assert plan().further(5, ended(alone, drop_all))[3] == spec
    assert len({one.placement_seed for one in [*specs, *plan().first(5)]}) == 2 * SLOTS
    assert len({one.sampling_seed for one in [*specs, *plan().first(5)]}) == 2 * SLOTS * SIZE
    assert {one.sampling_seed for one in plan().first(6)}.isdisjoint(
        one.sampling_seed for one in plan().first(5)
    )


def test_first_tasks_get_equal_shares_and_further_ones_are_drawn_anew() -> None:
    groups = plan(max_attempts=61)
    first = done = groups.first(0)
    assert sorted(spec.task.index for spec in first[::SIZE]) == [1, 4, 7]
    for _ in range(60):
        done = [*first, *groups.further(0, ended(done, lambda *_: False))]
    drawn = Counter(spec.task.index for spec in done[SIZE * SLOTS :: SIZE])
    # 180 draws of three tasks alike: 60 each, with a deviation of 6.3.
    assert sum(drawn.values()) == 180
    assert all(abs(count - 60) < 26 for count in drawn.values()), drawn


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["filter"])
def test_the_filter_against_plain_sums(case: dict[str, list[list[float]]]) -> None:
    between = (case["low"], case["high"])
    verdicts = [verdict_of([bool(one) for one in group], between) for group in case["outcomes"]]
    assert [n for n, one in enumerate(verdicts) if one is Verdict.KEPT] == case["kept"]
    for group, verdict in zip(case["outcomes"], verdicts, strict=True):
        if set(group) == {1.0}:
            assert verdict is Verdict.SUCCESSES
        if set(group) == {0.0}:
            assert verdict is Verdict.FAILURES


def test_bounds_belong_to_what_is_kept() -> None:
    for solved, verdict in [
        (0, Verdict.FAILURES),
        (1, Verdict.KEPT),
        (9, Verdict.KEPT),
        (10, Verdict.SUCCESSES),
    ]:
        assert verdict_of([True] * solved + [False] * (10 - solved), (0.1, 0.9)) is verdict
    for solved in range(3):
        assert verdict_of([True] * solved + [False] * (2 - solved), (0.0, 1.0)) is Verdict.KEPT
    assert verdict_of([True], (0.0, 1.0)) is verdict_of([], (0.0, 1.0)) is Verdict.VOID


def test_what_is_kept_at_once_orders_nothing_more() -> None:
    orders, review = iteration(plan(), half)
    assert review.kept == orders
    assert review.metrics == {
        "groups_kept": 3,
        "groups_dropped_success": 0,
        "groups_dropped_failure": 0,
        "groups_void": 0,
        "group_attempts": 1,
        "episodes_per_learned": 1,
        "group_deviation": 0.5,
    }


def test_slots_go_on_without_one_another(caplog: pytest.LogCaptureFixture) -> None:
    """The first is kept at once, the second at the third attempt, the last never."""

    def play(slot: int, attempt: int, member: int) -> bool:
        if slot == 2 or (slot == 1 and attempt == 0):
            return attempt == 1
        return member == 0 if slot == 0 or attempt == 2 else True

    with caplog.at_level(logging.WARNING):
        orders, review = iteration(plan(), play)
    tried = Counter(order.rpartition(":")[0] for order in orders)
    assert tried == {
        f"run:00000:{attempt:02d}:{slot:04d}": SIZE
        for slot, attempts in enumerate([1, 3, 3])
        for attempt in range(attempts)
    }
    kept = [
        f"run:00000:{group}:{member:02d}" for group in ("00:0000", "02:0001") for member in range(4)
    ]
    assert review.kept == kept
    assert review.metrics == {
        "groups_kept": 2,
        "groups_dropped_success": 2,  # attempt 1 of the second and of the last
        "groups_dropped_failure": 3,
        "groups_void": 0,
        "group_attempts": pytest.approx(7 / 3),
        "episodes_per_learned": 28 / 8,
        "group_deviation": pytest.approx(np.sqrt(0.25 * 0.75)),
    }
    (said,) = caplog.messages
    assert "learns from 2 of 3 groups: of the others none of 3 attempts" in said
    assert "trainer.grpo.keep_between, [0.25, 0.75]" in said


def test_a_slot_goes_on_as_soon_as_its_own_group_has_ended() -> None:
    """Not as long as one of its members is out, and whatever order they come back in."""
    groups = plan()
    first = groups.first(0)
    one = [spec for spec in first if spec.group_id == "run:00000:00:0001"]
    more = groups.further(0, ended(one, lambda *_: True))
    assert {spec.group_id for spec in more} == {"run:00000:01:0001"}
    assert groups.further(0, Ended([], [])) == []
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(len(first)).tolist()
        some = ended([first[place] for place in shuffled], lambda slot, *_: slot > 0)
        assert groups.further(0, some) == groups.further(0, ended(first, lambda slot, *_: slot > 0))


def test_what_was_given_up_shrinks_its_group() -> None:
    """Of the first two of four come back, unalike; of the second one; of the third none."""

    def play(slot: int, attempt: int, member: int) -> bool | None:
        if attempt:
            return half(slot, attempt, member)
        return member == 0 if member < 2 - slot else None

    orders, review = iteration(plan(), play)
    assert review.kept[:2] == ["run:00000:00:0000:00", "run:00000:00:0000:01"]
    assert review.kept[2:] == orders[SIZE * SLOTS :]
    assert {order.rpartition(":")[0] for order in orders[SIZE * SLOTS :]} == {
        "run:00000:01:0001",
        "run:00000:01:0002",
    }
    assert review.metrics["groups_void"] == 2
    assert review.metrics["groups_kept"] == 3
    assert review.metrics["episodes_per_learned"] == (2 + 1 + 0 + 8) / 10


@pytest.mark.parametrize(
    ("solved", "advice"), [(False, "begin with easier tasks"), (True, "the tasks are solved")]
)
def test_where_none_is_kept_the_latest_that_can_be_compared_are_learned_from(
    solved: bool, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the last slot nobody came back at the last attempt, of the first never two."""

    def play(slot: int, attempt: int, member: int) -> bool | None:
        if (slot == 0 and member) or (slot == 2 and attempt == ATTEMPTS - 1):
            return None
        return solved

    with caplog.at_level(logging.WARNING):
        _, review = iteration(plan(), play)
    groups = ("02:0001", "01:0002")
    assert review.kept == [f"run:00000:{group}:{n:02d}" for group in groups for n in range(SIZE)]
    assert review.metrics["groups_kept"] == 0
    assert review.metrics["group_deviation"] == 0
    (said,) = caplog.messages
    assert "NO GROUP has a mean success within trainer.grpo.keep_between, [0.25, 0.75]" in said
    assert "4 too few episodes. It learns from the latest 2" in said
    assert advice in said


def test_without_two_episodes_to_compare_the_run_stops() -> None:
    with pytest.raises(RolloutError, match="no group of 3 had two episodes that came back, in 3 a"):
        iteration(plan(), lambda slot, attempt, member: True if member == 0 else None)


def test_a_batch_ordered_ahead_keeps_its_tasks() -> None:
    """The curriculum goes on meanwhile; a trainer that comes back has only what was written."""
    frontier = CurriculumConfig(kind="frontier", tau=0.05, floor=0.0)
    config = plan()._config
    before = Curriculum((1, 4, 7), frontier)
    alive = GroupPlan(config, before, "key")
    ordered = {number: alive.first(number) for number in (0, 1, 2)}
    for _ in range(50):
        before.record(1, True)
        before.record(4, True)
    written = json.loads(json.dumps(alive.tasks_ahead(1)))
    assert list(written) == ["1", "2"]
    after = Curriculum((1, 4, 7), frontier)
    after.restore(before.state())
    forgetful, resumed = GroupPlan(config, after, "key"), GroupPlan(config, after, "key")
    resumed.restore(written)
    for number in (1, 2):
        assert alive.first(number) == ordered[number] == resumed.first(number)
    assert {spec.task.index for spec in forgetful.first(1)} == {7}
    assert forgetful.first(1) != ordered[1]


def test_tasks_that_a_run_goes_on_without_are_drawn_anew() -> None:
    groups = plan()
    groups.restore({"1": [1, 4, 9], "2": [1, 4], "3": [4, 4, 4]})
    assert {spec.task.index for spec in groups.first(1)} == {1, 4, 7}
    assert {spec.task.index for spec in groups.first(2)} == {1, 4, 7}
    assert {spec.task.index for spec in groups.first(3)} == {4}
