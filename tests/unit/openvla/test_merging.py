"""How factors become weights: rounding to 16 bits keeps an update, alike on every side."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from vlarl.weights.merge import checksum, merge, rounded  # noqa: E402

pytestmark = pytest.mark.torch
HALVES = [torch.bfloat16, torch.float16]


def on_the_grid(dtype: torch.dtype, shape: tuple[int, int] = (256, 512)) -> torch.Tensor:
    """Weights of the 7B's scale, as a checkpoint has them."""
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(shape, generator=generator) * 0.02).to(dtype)


def step_of(values: torch.Tensor) -> torch.Tensor:
    """The distance of 16-bit numbers to the next one, away from zero."""
    away = torch.where(values > 0, torch.inf, -torch.inf).to(values.dtype)
    return (torch.nextafter(values, away).float() - values.float()).abs()


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_on_the_grid_stays(dtype: torch.dtype) -> None:
    weight = on_the_grid(dtype)
    assert torch.equal(rounded(weight.float(), dtype), weight)
    special = torch.tensor([[0.0, -0.0, torch.inf, -torch.inf, 1.0, 2**-14, -(2**-14)]])
    assert torch.equal(rounded(special, dtype).float(), special)
    assert rounded(torch.full((1, 8), torch.nan), dtype).isnan().all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_as_many_go_up_as_the_remainder_says(dtype: torch.dtype, share: float) -> None:
    weight = on_the_grid(dtype)
    weight = weight[weight.abs() > 1e-3][:65536].reshape(256, 256)
    step = step_of(weight)
    up = weight.float() + share * step * weight.sign()
    moved = rounded(up, dtype).float() != weight.float()
    assert torch.allclose(
        (rounded(up, dtype).float() - weight.float()).abs()[moved], step[moved], rtol=0, atol=0
    )
    assert moved.float().mean().item() == pytest.approx(share, abs=0.005)
    # In any part of the matrix.
    for part in (moved[:16, :64], moved[:, 7:8], moved[9:10, :], moved[::3, ::5]):
        assert part.float().mean().item() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("dtype", HALVES)
def test_an_update_far_below_a_step_is_kept_in_the_mean(dtype: torch.dtype) -> None:
    """An optimizer's first steps: to the nearest number they would all be lost."""
    weight = on_the_grid(dtype, (1024, 1024))
    size = step_of(weight).median() / 50
    update = size * torch.where(torch.arange(1024) % 3 == 0, 1.0, -0.5)
    exact = weight.float() + update
    assert (exact.to(dtype) == weight).float().mean() > 0.9
    change = rounded(exact, dtype).float() - weight.float()
    kept = (change * update).sum() / (update.square().sum() * 1024)
    assert kept.item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_rows_of_a_layer_are_those_of_the_whole(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = on_the_grid(dtype, (96, 64))
    a = torch.randn((4, 64), generator=generator)
    b = torch.randn((96, 4), generator=generator) * 1e-4
    whole = merge(weight, (a, b), 0.5, dtype)
    parts = [merge(weight[i : i + 32], (a, b[i : i + 32]), 0.5, dtype, i) for i in (0, 32, 64)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, weight)
    sums = [checksum(part, first) for part, first in zip(parts, (0, 32, 64), strict=True)]
    assert sum(sums) % 2**64 == checksum(whole)


def test_rounding_is_the_same_everywhere_and_for_good() -> None:
    """Found once; another release, machine or device must not find other numbers."""
    values = torch.linspace(-0.02, 0.02, 63).reshape(7, 9) + 1e-6
    assert checksum(rounded(values, torch.float16)) == 11599382530324323550
    assert checksum(rounded(values, torch.bfloat16)) == 3858962647021932220


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_a_checksum_sees_one_bit_and_where_it_is(dtype: torch.dtype) -> None:
    weight = on_the_grid(dtype, (33, 17)).contiguous()
    before = checksum(weight)
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    for row, column in ((0, 0), (32, 16), (5, 0)):
        changed = weight.clone()
        changed.view(kind)[row, column] ^= 1
        assert checksum(changed) != before
    for changed in (weight.flip(0), weight.roll(1, 1), weight[:, [1, 0, *range(2, 17)]]):
        assert checksum(changed) != before
    assert checksum(weight.clone()) == before
    assert 0 <= before < 2**64
