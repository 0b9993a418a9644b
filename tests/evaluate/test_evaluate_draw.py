"""Images that are drawn by margins, against draws of all alike."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from automl_compress.evaluate import standard_error
from automl_compress.evaluate.draw import POOL, chances_of, draw_images, systematic
from automl_compress.workload import CLASSIFICATION, STRATA, ImageSet, Sample
from automl_compress.workload.task import weighted_share

IMAGES = 4_000
COUNT = 400


def images(count: int) -> ImageSet:
    """Images that hold their own number."""
    numbers = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)
    return ImageSet.of(numbers, np.zeros(count, dtype=np.int64))


def numbers(drawn: ImageSet) -> list[int]:
    return drawn.images[:, 0, 0, 0].astype(int).tolist()


@functools.cache
def population() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(n,) signed margins of an original, and (60, n) right answers of networks somewhat worse.

    Of an image whose margin is narrow, whether a network is right is a matter of chance.
    """
    rng = np.random.default_rng(0)
    margins = rng.gamma(2.0, 4.0, IMAGES) * np.where(rng.random(IMAGES) < 0.08, -0.3, 1.0)
    noise = rng.normal(0.0, rng.uniform(2.0, 7.0, (60, 1)), (60, IMAGES))
    return margins, margins + noise > 0


@functools.cache
def drawn_shares(seed: int, draw: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(60,) shares of right answers to drawn images, and their standard errors."""
    margins, right = population()
    drawn = draw_images(
        images(IMAGES),
        COUNT,
        seed,
        draw,  # type: ignore[arg-type]
        lambda some: torch.from_numpy(margins[numbers(some)]),
    )
    rows = numbers(drawn.images)
    if drawn.sample is None:
        shares = right[:, rows].mean(axis=1)
        return shares, np.array([standard_error(share, COUNT) for share in shares])
    found = [weighted_share(torch.from_numpy(row[rows]), drawn.sample) for row in right]
    return np.array([share for share, _ in found]), np.array([error for _, error in found])


def test_shares_are_those_of_all_images_with_less_noise() -> None:
    _, right = population()
    whole = right.mean(axis=1)
    off = {
        draw: np.array([drawn_shares(seed, draw)[0] - whole for seed in range(100)])
        for draw in ("margin", "uniform")
    }
    assert np.abs(off["margin"].mean(axis=0)).max() < 4 * off["margin"].std() / 10
    assert off["margin"].std() < 0.8 * off["uniform"].std()
    apart = {draw: np.diff(found, axis=1).std() for draw, found in off.items()}
    assert apart["margin"] < 0.9 * apart["uniform"]


def test_stated_errors_are_what_draws_scatter_by() -> None:
    """Those of all images that there could be, of which the population is a draw itself."""
    shares, errors = zip(*(drawn_shares(seed, "margin") for seed in range(100)), strict=True)
    whole = population()[1].mean(axis=1)
    scatter = np.sqrt(np.var(shares, axis=0) + whole * (1 - whole) / IMAGES)
    stated = np.sqrt(np.square(errors).mean(axis=0))
    assert 0.95 < float(np.mean(stated / scatter)) < 1.2
    assert stated.mean() < 0.93 * np.mean([standard_error(share, COUNT) for share in whole])


def sample(n: int) -> Sample:
    strata = torch.arange(n) % STRATA
    return Sample(1.0 + 0.1 * (strata % 2).double(), strata, 10 * n)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("n", [1, STRATA, 50])
def test_no_share_is_known_exactly(right: bool, n: int) -> None:
    share, error = weighted_share(torch.full((n,), right), sample(50))
    assert share == pytest.approx(float(right))
    assert error == pytest.approx(1 / (n + 2))


def test_no_share_is_above_one() -> None:
    """Weights that are divided by their sum add up to a little more than 1 now and then."""
    whole = [weighted_share(torch.full((n,), True), sample(n))[0] for n in range(2, 100)]
    assert max(whole) == 1.0


def test_errors_are_those_of_a_stratified_sample() -> None:
    """Each stratum by a loop, the first of which has one image only."""
    drawn, right = sample(50), torch.arange(50) % 3 > 0
    keep = [0, *(i for i in range(50) if i % STRATA)]
    part = Sample(drawn.weights[keep], drawn.strata[keep], drawn.pool)
    r, w, s = right[keep].double().numpy(), part.weights.numpy(), part.strata.numpy()
    w = w / w.sum()
    share = float((w * r).sum())
    within = w[0] ** 2 * share * (1 - share)
    for stratum in range(1, STRATA):
        its, counts = w[s == stratum], r[s == stratum]
        centre = np.average(counts, weights=its)
        within += (its**2 * (counts - centre) ** 2).sum() * len(its) / (len(its) - 1)
    expected = within + share * (1 - share) / part.pool + 1 / (len(keep) + 2) ** 2
    found = weighted_share(right[keep], part)
    assert found == pytest.approx((share, expected**0.5))


@pytest.mark.parametrize("count", [1, 7, 40, 99, 100])
def test_chances_fall_with_the_margin_and_add_up(count: int) -> None:
    margins = np.random.default_rng(1).normal(0, 5, 100)
    chances = chances_of(margins, count)
    assert chances.sum() == pytest.approx(count)
    assert ((chances > 0) & (chances <= 1)).all()
    assert (np.diff(chances[np.argsort(np.abs(margins))]) <= 1e-12).all()
    assert (chances_of(margins**3, count) == chances).all()  # only the order counts


@pytest.mark.parametrize("count", [1, 30, 77, 100])
def test_places_are_drawn_once_and_by_their_chances(count: int) -> None:
    margins = np.random.default_rng(1).normal(0, 5, 100)
    chances, order = chances_of(margins, count), np.argsort(margins)
    rng = np.random.default_rng(0)
    often = np.zeros(100)
    for _ in range(2_000):
        places = systematic(chances, order, rng)
        assert len(set(places.tolist())) == count
        assert (np.diff(margins[places]) > 0).all()
        often[places] += 1
    assert np.abs(often / 2_000 - chances).max() < 0.05


def test_strata_are_alike_and_as_large_as_each_other() -> None:
    margins, _ = population()
    drawn = draw_images(
        images(IMAGES), COUNT, 0, "margin", lambda some: torch.from_numpy(margins[numbers(some)])
    )
    assert drawn.sample is not None
    assert drawn.sample.pool == POOL * COUNT
    assert float(drawn.sample.weights.mean()) == pytest.approx(1.0)
    strata, found = drawn.sample.strata.numpy(), margins[numbers(drawn.images)]
    assert np.bincount(strata).tolist() == [COUNT // STRATA] * STRATA
    ends = [(found[strata == s].min(), found[strata == s].max()) for s in range(STRATA)]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))


def test_a_draw_depends_on_its_seed_alone_and_holds_no_image_twice() -> None:
    margins, _ = population()

    def draw(seed: int) -> list[int]:
        def of(some: ImageSet) -> Tensor:
            return torch.from_numpy(margins[numbers(some)])

        return numbers(draw_images(images(IMAGES), COUNT, seed, "margin", of).images)

    assert draw(3) == draw(3) != draw(4)
    assert len(set(draw(3))) == COUNT
    first = np.abs(margins[draw(3)[: COUNT // 4]]).mean()
    assert first == pytest.approx(np.abs(margins[draw(3)]).mean(), rel=0.25)  # in random order


def test_few_margins_are_asked_for() -> None:
    asked: list[int] = []

    def margins(some: ImageSet) -> Tensor:
        asked.extend(numbers(some))
        return torch.arange(len(some), dtype=torch.float32)

    drawn = draw_images(images(IMAGES), 10, 0, "margin", margins)
    assert len(set(asked)) == POOL * 10
    assert set(numbers(drawn.images)) <= set(asked)


def test_whole_splits_and_answers_without_margins_count_alike() -> None:
    split = images(50)

    def none(_: ImageSet) -> None:
        return None

    for count in (None, 50):
        whole = draw_images(split, count, 0, "margin", none)
        assert whole.images is split
        assert whole.sample is None
    some = draw_images(split, 20, 5, "margin", none)
    assert numbers(some.images) == numbers(split.draw(20, 5))
    assert some.sample is None


def test_scores_weigh_the_answers_known_so_far() -> None:
    outputs = torch.eye(2)[torch.tensor([0, 1, 0, 0])]
    labels = torch.tensor([0, 0, 1, 0])
    weights = torch.tensor([0.5, 1.5, 0.5, 1.5], dtype=torch.float64)
    drawn = Sample(weights, torch.zeros(4, dtype=torch.long), 20)
    scores = list(CLASSIFICATION.scores(outputs.split(2), labels, drawn))
    assert [score.metrics["accuracy"] for score in scores] == [0.25, 0.5]
    assert [score.images for score in scores] == [2, 4]
    assert all(0 < score.metrics["accuracy_se"] < 0.7 for score in scores)
