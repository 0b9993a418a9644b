from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from automl_compress import user_code
from automl_compress.errors import WorkloadError
from automl_compress.workload.sources import TrainTest
from automl_compress.workload.user_data import FactorySource

resolve = partial(user_code.resolve, error=WorkloadError)

UserModule = Callable[[str], str]
Refused = Callable[..., None]

HEAD = """
import numpy as np
import torch
from PIL import Image

def make(convert, labels=(0, 1, 0, 1, 2)):
    rng = np.random.default_rng(0)
    return [(convert(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)), y) for y in labels]

"""


@pytest.fixture
def load(user_module: UserModule) -> Callable[[str], TrainTest]:
    """Loads the data of a user's function, given its lines."""

    def call(lines: str) -> TrainTest:
        body = "".join(f"    {line}\n" for line in lines.splitlines())
        name = user_module(f"{HEAD}def data():\n{body}")
        return FactorySource(f"{name}:data").load(0)

    return call


def test_resolve_finds_functions_and_dotted_attributes(user_module: UserModule) -> None:
    name = user_module("class Nets:\n    @staticmethod\n    def small():\n        return 3\n")
    assert resolve(f"{name}:Nets.small")() == 3
    assert resolve("os.path:join")("a", "b") == str(Path("a/b"))


def test_the_current_folder_is_importable(user_module: UserModule) -> None:
    name = user_module("def f(): return 7\n")
    assert str(Path.cwd()) not in sys.path
    assert resolve(f"{name}:f")() == 7


@pytest.mark.parametrize("name", ["os.path", "os.path:", ":x", "a b:c", "os:system('x')", "a:b:c"])
def test_resolve_refuses_other_spellings(name: str, refused: Refused) -> None:
    refused(lambda: resolve(name), "package.module:function", f"'{name}'")


def test_resolve_names_what_is_missing(user_module: UserModule, refused: Refused) -> None:
    refused(lambda: resolve("no_such_place.inner:x"), "no module 'no_such_place'", "before the")
    refused(lambda: resolve("os.inner:x"), "no module 'os.inner'")
    name = user_module("value = 3\nimport_me = 4\n")
    refused(lambda: resolve(f"{name}:other"), "has no 'other'", "after the colon")
    refused(lambda: resolve(f"{name}:value"), "function or class", "type int")


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("import no_such_library", ("ModuleNotFoundError", "'no_such_library'")),
        ("raise ValueError('two\\nlines')", ("ValueError: two lines",)),
        ("def broken(:", ("SyntaxError",)),
        ("import sys; sys.exit(3)", ("SystemExit: 3",)),
    ],
)
def test_an_import_that_fails_is_told(
    text: str, texts: tuple[str, ...], user_module: UserModule, refused: Refused
) -> None:
    name = user_module(text)
    refused(lambda: resolve(f"{name}:x"), f"importing '{name}'", *texts)


@pytest.mark.parametrize(
    "convert",
    [
        "Image.fromarray",
        "np.asarray",
        "lambda x: x.transpose(2, 0, 1)",
        "lambda x: torch.from_numpy(x.transpose(2, 0, 1).copy())",
    ],
)
def test_every_8_bit_form_gives_the_same_pixels(
    convert: str, load: Callable[[str], TrainTest]
) -> None:
    sets = load(f"return make({convert}), make({convert}, [2, 0])")
    rng = np.random.default_rng(0)
    want = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8).transpose(2, 0, 1)
    assert np.array_equal(sets.train.images[0], want)
    assert sets.train.images.dtype == np.uint8
    assert sets.train.labels.tolist() == [0, 1, 0, 1, 2]
    assert sets.classes == ("0", "1", "2")


def test_grey_images_and_floats(load: Callable[[str], TrainTest]) -> None:
    grey = "make(lambda x: Image.fromarray(x[:, :, 0]))"
    assert load(f"return {grey}, {grey}").train.shape == (1, 4, 5)
    flat = "make(lambda x: torch.from_numpy(x[:, :, 0] / 7.0))"
    sets = load(f"return {flat}, {flat}")
    assert sets.bare
    assert sets.as_images().train.shape == sets.as_images().test.shape == (1, 4, 5)
    assert sets.train.images.dtype == np.float32


@pytest.mark.parametrize("shape", [(60,), (4, 15), (2, 3, 2, 5), (12, 1, 5)])
def test_tensors_and_arrays_of_one_to_four_axes_are_taken_as_they_are(
    shape: tuple[int, ...], load: Callable[[str], TrainTest]
) -> None:
    array, tensor = f"x.reshape({shape})", f"torch.from_numpy(x.reshape({shape}))"
    sets = load(f"return make(lambda x: {array}), make(lambda x: {tensor})")
    assert sets.train.shape == sets.test.shape == shape
    assert np.array_equal(sets.train.images, sets.test.images)
    assert sets.bare == (len(shape) == 2)


def test_labels_may_be_tensors_and_classes_may_have_names(
    load: Callable[[str], TrainTest],
) -> None:
    sets = load(
        "class Named(list):\n    classes = ['cat', 'dog']\n"
        "labels = [torch.tensor(1), np.int64(0), np.array([1])]\n"
        "return Named(make(np.asarray, labels)), make(np.asarray, [0, 1])"
    )
    assert sets.classes == ("cat", "dog")
    assert sets.train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ("raise KeyError('x')", ("data factory", "KeyError: 'x'")),
        ("return 3", ("(train, test)", "of type int")),
        ("return make(np.asarray), [], []", ("(train, test)", "a tuple of 3")),
        ("return iter([]), []", ("the train set", "a length and items", "list_iterator")),
        ("return make(np.asarray), []", ("the test set", "is empty")),
        ("return [1, 2], [3]", ("(example, label)", "item 0 is of type int")),
        ("return [('a', 0)], []", ("a PIL image, or a tensor", "item 0", "of type str")),
        ("return make(lambda x: x.astype(int)), []", ("uint8 (0..255) or floats", "int64")),
        ("return make(lambda x: x[None, None]), []", ("1 to 4 axes", "shape (1, 1, 4, 5, 3)")),
        ("return make(lambda x: x[0, 0, 0]), []", ("1 to 4 axes", "of type uint8")),
        ("return make(np.asarray, [0, 0.5]), []", ("whole number", "item 1", "of type float")),
        ("return make(np.asarray, [{'boxes': []}]), []", ("type dict", "boxes (n, m, 6)")),
        ("return make(np.asarray, [torch.ones(3, 6)]), []", ("(3, 6)", "boxes (n, m, 6)")),
        ("return make(np.asarray, [0, True]), []", ("whole number", "item 1", "of type bool")),
        (
            "return make(np.asarray), make(np.asarray, [0, -1])",
            ("a label must be from 0", "item 1 of the test set", "has -1"),
        ),
        (
            "return make(np.asarray, [0, 2**70]), []",
            ("a label must be from 0 to 2147483647", "item 1", "has 1180591620717411303424"),
        ),
        (
            "class Named(list):\n    classes = ['a', 'b']\n"
            "return Named(make(np.asarray)), make(np.asarray)",
            ("labels", "0..1", "reach to 2"),
        ),
        ("return make(np.asarray, [0]), make(np.asarray, [0])", ("at least two classes",)),
        (
            "return make(np.asarray)[:1] + [(np.zeros((3, 9, 9), np.uint8), 1)], []",
            ("one shape and type", "(3, 4, 5)", "item 1", "(3, 9, 9)"),
        ),
        (
            "return make(np.asarray), make(lambda x: x / 255)",
            ("train and test", "uint8", "float32"),
        ),
        ("return make(lambda x: x * np.nan), []", ("finite",)),
        (
            "class Failing(list):\n    def __getitem__(self, i):\n        raise OSError('gone')\n"
            "return Failing([1]), []",
            ("the train set", "OSError: gone"),
        ),
        (
            "class Random(list):\n    def __getitem__(self, i):\n"
            "        return torch.rand(3, 4, 5), i % 2\n"
            "return Random([1, 2]), []",
            ("the same example each time", "item 0", "remove random augmentation"),
        ),
    ],
)
def test_wrong_data_is_refused(
    lines: str, texts: tuple[str, ...], load: Callable[[str], TrainTest], refused: Refused
) -> None:
    refused(lambda: load(lines), *texts)
