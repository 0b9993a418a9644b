from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automl_compress.workload import ImageSet, Normalization, channel_statistics

Refused = Callable[..., None]


def _images(count: int = 10, dtype: type = np.uint8) -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, 4, 5)).astype(dtype)
    return ImageSet.of(pixels, np.arange(count) % 3)


@given(count=st.integers(1, 10), more=st.integers(0, 9), seed=st.integers(0, 2**32))
def test_a_larger_draw_holds_the_smaller_one(count: int, more: int, seed: int) -> None:
    images = _images()
    small, large = images.draw(count, seed), images.draw(min(10, count + more), seed)
    assert np.array_equal(large.images[:count], small.images)
    assert len(np.unique(large.images, axis=0)) == len(large)


def test_a_set_is_shown_by_its_shape() -> None:
    images = ImageSet.of(np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64))
    assert repr(images) == f"ImageSet(2x1x4x4, {images.content_hash[:8]})"


def test_draw_is_seeded_and_an_own_copy() -> None:
    images = _images()
    drawn = images.draw(4, seed=3)
    assert drawn.content_hash == images.draw(4, seed=3).content_hash
    assert drawn.content_hash != images.draw(4, seed=4).content_hash
    assert not np.shares_memory(drawn.images, images.images)
    assert drawn.images.flags.c_contiguous


@pytest.mark.parametrize("count", [0, 11])
def test_draw_refuses_what_it_cannot_give(count: int, refused: Refused) -> None:
    refused(lambda: _images().draw(count, 0), "1..10 examples", f"but {count} were")


def test_take_keeps_order_and_labels(refused: Refused) -> None:
    images = _images()
    taken = images.take([7, 2])
    assert np.array_equal(taken.images, images.images[[7, 2]])
    assert taken.labels.tolist() == [1, 2]
    assert taken.content_hash != images.take([2, 7]).content_hash
    refused(lambda: images.take([0, 10]), "0..9", "to 10")
    refused(lambda: images.take([]), "without an empty axis")


def test_content_hash_sees_pixels_labels_shape_and_type() -> None:
    images = _images()
    changed = images.images.copy()
    changed[-1, -1, -1, -1] ^= 1
    same = ImageSet.of(images.images.copy(), images.labels.copy())
    assert same.content_hash == images.content_hash
    others = [
        ImageSet.of(changed, images.labels),
        ImageSet.of(images.images, images.labels[::-1]),
        ImageSet.of(images.images.reshape(10, 3, 5, 4), images.labels),
        ImageSet.of(images.images.astype(np.float32), images.labels),
    ]
    assert len({one.content_hash for one in [images, *others]}) == 5


def test_content_hash_does_not_depend_on_reading_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = _images().content_hash
    monkeypatch.setattr("automl_compress.workload.images._HASH_BYTES", 100)
    assert _images().content_hash == whole
    assert hashlib.sha256().digest_size * 2 == len(whole)


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1, 1, 1, 1), (0, 3, 8, 8)])
def test_image_set_refuses_other_shapes(shape: tuple[int, ...], refused: Refused) -> None:
    pixels = np.zeros(shape, np.uint8)
    refused(lambda: ImageSet.of(pixels, [0] * shape[0]), "(n, c, h, w)", str(shape))


@pytest.mark.parametrize("shape", [(6,), (3, 2), (3, 4, 5), (3, 2, 2, 2)])
def test_examples_of_any_shape_are_normalized_by_their_first_axis(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    examples = ImageSet.of(pixels, np.arange(5) % 2)
    assert examples.shape == shape
    assert examples.are_images == (len(shape) == 3)
    mean, std = channel_statistics(examples)
    scaled = pixels.swapaxes(1, -1).reshape(-1, shape[0]) / 255
    np.testing.assert_allclose([mean, std], [scaled.mean(0), scaled.std(0)], atol=1e-4)
    for channel, values in enumerate(examples.tensor(Normalization(mean, std)).unbind(1)):
        expected = (pixels[:, channel] / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_only_images_have_boxes(refused: Refused) -> None:
    boxes = np.zeros((2, 1, 6), np.float32)
    refused(lambda: ImageSet.of(np.zeros((2, 3, 8), np.float32), boxes), "boxes must be images")


def test_the_hash_of_images_is_that_of_earlier_versions() -> None:
    images = ImageSet.of(np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4), [0, 1])
    assert images.content_hash.startswith("ab2f509078237037")
    assert images.take([1]).content_hash.startswith("e7451ae91d1d0ecb")


def test_image_set_refuses_labels_that_do_not_match(refused: Refused) -> None:
    refused(lambda: ImageSet.of(np.zeros((2, 1, 4, 4), np.uint8), [0]), "(2,)", "(1,)")
    refused(lambda: ImageSet.of(np.zeros((2, 1, 4, 4), np.uint8), [0, 1.5]), "whole", "float64")
    refused(lambda: ImageSet.of(np.zeros((2, 1, 4, 4), np.uint8), [0, -1]), "reach down to -1")


def test_one_number_for_all_channels_is_refused(refused: Callable[..., None]) -> None:
    wrong: Any = 0.5
    refused(lambda: Normalization(wrong, wrong), "mean must hold one number a channel, but is 0.5")


def test_normalization_is_that_of_torchvision() -> None:
    from torchvision.transforms import functional

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = _images()
    got = images.tensor(Normalization(mean, std), 2, 5)
    want = [
        functional.normalize(functional.to_tensor(one.transpose(1, 2, 0)), mean, std)
        for one in images.images[2:5]
    ]
    assert torch.equal(got, torch.stack(want))
    assert got.dtype == torch.float32


def test_floats_pass_through_as_a_copy() -> None:
    images = _images(dtype=np.float32)
    values = images.tensor(Normalization.unit(3))
    assert np.array_equal(values.numpy(), images.images)
    values.zero_()
    assert images.images.any()


@pytest.mark.parametrize(
    ("mean", "std", "texts"),
    [
        ((0.5,), (0.0,), ("std must be above 0", "[0]")),
        ((0.5,), (-0.1,), ("std must be above 0", "[-0.1]")),
        ((0.5, 0.5), (1.0,), ("2 and 1",)),
        ((float("nan"),), (1.0,), ("mean must hold finite numbers", "[nan]")),
        ((), (), ("0 and 0",)),
    ],
)
def test_normalization_refuses(
    mean: tuple[float, ...], std: tuple[float, ...], texts: tuple[str, ...], refused: Refused
) -> None:
    refused(lambda: Normalization(mean, std), *texts)


def test_normalization_refuses_other_channels(refused: Refused) -> None:
    refused(lambda: _images().tensor(Normalization.unit(1)), "hold 1 for 3")
