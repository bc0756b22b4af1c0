"""From recorded control steps to samples."""

from __future__ import annotations

import numpy as np

from vlarl.models.statistics import to_simulator
from vlarl_jobs.demonstrations.steps import (
    grouped_actions,
    held_actions,
    in_dataset_units,
    kept_without_no_ops,
)


def actions(*rows: tuple[float, float]) -> np.ndarray:
    """Movement along x, and the gripper's command."""
    table = np.zeros((len(rows), 7))
    table[:, [0, 6]] = rows
    return table


def test_units_are_those_that_the_simulator_turns_back() -> None:
    recorded = actions((0.5, -1), (0.5, 1))
    np.testing.assert_array_equal(in_dataset_units(recorded)[:, 6], [1, 0])
    np.testing.assert_array_equal(to_simulator(in_dataset_units(recorded)), recorded)


def test_no_ops_are_left_out_as_openvlas_data_do() -> None:
    recorded = actions((0, -1), (0.5, -1), (0, -1), (0, 1), (0, 1), (1e-5, 1), (-0.2, 1), (0, -1))
    # The first still one has nothing before it; a change of the gripper's command is no no-op.
    assert kept_without_no_ops(recorded).tolist() == [1, 3, 6, 7]


def test_held_actions_are_taken_once() -> None:
    recorded = np.repeat(actions((0.1, -1), (0.2, -1), (0.3, 1)), [4, 4, 2], axis=0)
    steps = held_actions(recorded, 4)
    assert steps.starts.tolist() == [0, 4, 8]
    np.testing.assert_allclose(steps.actions[:, 0], [0.1, 0.2, 0.3], rtol=1e-6)
    assert steps.actions[:, 6].tolist() == [1, 1, 0]


def test_single_steps_become_one_action_that_goes_as_far() -> None:
    recorded = actions((0.2, -1), (0, -1), (0.4, -1), (0.6, 1), (0.2, 1), (0.1, 1))
    steps = grouped_actions(recorded, 2)
    assert steps.starts.tolist() == [0, 3, 5]
    np.testing.assert_allclose(steps.actions[:, 0], [0.3, 0.4, 0.1], rtol=1e-6)
    assert steps.actions[:, 6].tolist() == [1, 0, 0]
    single = grouped_actions(recorded, 1)
    assert single.starts.tolist() == [0, 2, 3, 4, 5]


def test_a_recording_of_no_ops_gives_no_sample() -> None:
    steps = grouped_actions(actions((0, -1), (0, -1)), 2)
    assert steps.actions.shape == (0, 7)
    assert steps.starts.shape == (0,)
