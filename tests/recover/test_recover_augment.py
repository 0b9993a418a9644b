from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automl_compress.errors import WorkloadError
from automl_compress.recover import Augmentation
from automl_compress.recover.augment import augment
from automl_compress.recover.batches import Batches
from automl_compress.workload import ImageSet, Normalization

NOTHING = Augmentation(crop=0, flip=False)


def _pixels(count: int, shape: tuple[int, int, int] = (3, 8, 6)) -> torch.Tensor:
    """Images without a black pixel, no two of them alike."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def _augment(images: torch.Tensor, settings: Augmentation, seed: int = 0) -> torch.Tensor:
    fill = torch.tensor([7, 8, 9][: images.shape[1]], dtype=images.dtype)
    return augment(images, settings, fill, torch.Generator().manual_seed(seed))[0]


def test_nothing_asked_nothing_changed() -> None:
    images = _pixels(5)
    assert torch.equal(_augment(images, NOTHING), images)


@given(seed=st.integers(0, 1000), most=st.integers(0, 4))
def test_a_crop_is_the_image_moved_between_black(seed: int, most: int) -> None:
    images = _pixels(4)
    got = _augment(images, Augmentation(crop=most, flip=False), seed)
    _, _, height, width = images.shape
    for one, changed in zip(images, got, strict=True):
        shifted = []
        for down in range(-most, most + 1):
            for right in range(-most, most + 1):
                frame = torch.zeros_like(one)
                to = (
                    slice(max(0, down), height + min(0, down)),
                    slice(max(0, right), width + min(0, right)),
                )
                of = (
                    slice(max(0, -down), height + min(0, -down)),
                    slice(max(0, -right), width + min(0, -right)),
                )
                frame[:, to[0], to[1]] = one[:, of[0], of[1]]
                shifted.append(frame)
        assert any(torch.equal(changed, frame) for frame in shifted)


def test_about_half_of_the_images_are_mirrored() -> None:
    images = _pixels(400)
    got = _augment(images, Augmentation(crop=0, flip=True))
    same = (got == images).flatten(1).all(1)
    mirrored = (got == images.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_cutout_fills_one_square_and_nothing_else() -> None:
    images = _pixels(200, (3, 9, 9))
    got = _augment(images, Augmentation(crop=0, flip=False, cutout=4))
    filled = (got == torch.tensor([7, 8, 9], dtype=torch.uint8)[:, None, None]).all(1)
    assert torch.equal(torch.where(filled[:, None], images, got), images)
    areas = set()
    for mask in filled:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])
        areas.add((int(rows.sum()), int(columns.sum())))
    assert (4, 4) in areas
    assert all(2 <= side <= 4 for area in areas for side in area)


def test_the_default_crop_is_an_eighth_of_the_height() -> None:
    images = torch.full((300, 1, 16, 16), 255, dtype=torch.uint8)
    black = (_augment(images, Augmentation(flip=False)) == 0).all(3).flatten(1).sum(1)
    assert int(black.max()) == 2


def _images(kind: type[np.generic] = np.uint8) -> ImageSet:
    return ImageSet.of(_pixels(10).numpy().astype(kind), np.arange(10))


def _batches(images: ImageSet, settings: Augmentation = NOTHING, seed: int = 0) -> Batches:
    scaling = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    return Batches(images, scaling, 4, settings, seed, torch.device("cpu"))


def test_an_epoch_shows_an_image_once_and_each_epoch_another_order() -> None:
    batches = _batches(_images())
    assert batches.steps == 2
    epochs = [[int(v) for s in range(2 * e, 2 * e + 2) for v in batches(s)[1]] for e in range(3)]
    assert all(len(set(labels)) == 8 for labels in epochs)
    assert len({tuple(labels) for labels in epochs}) == 3


def test_a_batch_is_normalised_as_estimates_are() -> None:
    images = _images()
    inputs, labels = _batches(images)(1)
    scaling = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert torch.equal(inputs, images.take(labels.numpy()).tensor(scaling))


def test_float_images_pass_as_they_are() -> None:
    images = _images(np.float32)
    inputs, labels = _batches(images)(0)
    assert torch.equal(inputs, torch.from_numpy(images.images[labels.numpy()]))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    settings = Augmentation(crop=2, cutout=2)
    first, again = _batches(_images(), settings), _batches(_images(), settings)
    for step in (5, 2, 3):
        first(step)
    assert torch.equal(first(3)[0], again(3)[0])
    assert not torch.equal(first(3)[0], _batches(_images(), settings, seed=1)(3)[0])


def test_images_on_disk_give_the_same_batches() -> None:
    held = _batches(_images())
    streamed = _batches(_images())
    streamed._resident = None
    for step in range(4):
        for one, other in zip(held(step), streamed(step), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(3,), (3, 8), (3, 4, 4, 4)])
def test_examples_that_are_no_images_are_normalised_and_nothing_else(
    shape: tuple[int, ...],
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, *shape), np.uint8)
    examples = ImageSet.of(pixels, np.arange(10))
    scaling = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    inputs, labels = _batches(examples, Augmentation())(1)
    assert torch.equal(inputs, examples.take(labels.numpy()).tensor(scaling))


@pytest.mark.parametrize("name", ["crop", "flip", "cutout"])
def test_only_images_are_changed(name: str) -> None:
    signals = ImageSet.of(np.zeros((4, 3, 8), np.float32), np.arange(4))
    match = f"'augment.{name}' changes images .*, but examples are of shape .3, 8.; remove it"
    with pytest.raises(WorkloadError, match=match):
        _batches(signals, Augmentation(**{name: True}))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_what_comes_in_is_blank_to_networks_that_scale_images_themselves(
    kind: type[np.generic],
) -> None:
    images = ImageSet.of(np.zeros((4, 1, 8, 8), kind), np.full((4, 1, 6), -1.0, np.float32))
    settings = Augmentation(crop=4, flip=False)
    batches = Batches(
        *(images, Normalization.unit(1), 4, settings, 0, torch.device("cpu")), blank=[0.6]
    )
    assert batches(0)[0].unique().tolist() == pytest.approx([0.0, 0.6])
