"""What has another type than a public function takes is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import automl_compress as ac

NETWORK = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
X = torch.ones(1, 1, 8, 8)
IMAGES = np.zeros((4, 1, 8, 8), np.uint8)
NOTHING: Any = None
SAY: Any = print


def _one_image() -> ac.ImageSet:
    return ac.ImageSet.of(IMAGES, np.zeros(4, np.int64))


def _workload(**settings: Any) -> ac.Workload:
    return ac.Workload.of(NETWORK, _one_image(), _one_image(), **settings)


def _saved(path: str, policy: Any, **words: Any) -> int:
    return ac.save_packed(NETWORK, path, policy, **words)


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "audience of an export": (
        lambda: ac.export_network("nowhere", "knee", "torch", "x", audience=SAY),
        "give Audience(say=...)",
    ),
    "audience of a recovery": (
        lambda: ac.recover_networks("nowhere", "knee", audience=SAY),
        "give Audience(say=...)",
    ),
    "audience of a pipeline": (
        lambda: ac.run_pipeline("nowhere", audience=SAY),
        "give Audience(say=...)",
    ),
    "rules of a recovery": (
        lambda: ac.recover_networks("nowhere", NOTHING),
        "must be picked by a rule, but are by nothing",
    ),
    "say": (lambda: ac.Audience(say=NOTHING), "'say' of an Audience must be a function"),
    "gene's name": (lambda: ac.Gene(NOTHING, "channels", (1,)), "but is nothing"),
    "gene's kind": (lambda: ac.Gene("channels:a", NOTHING, (1,)), "is nothing"),
    "gene's values": (lambda: ac.Gene("channels:a", "channels", NOTHING), "but has nothing"),
    "genes": (lambda: ac.SearchSpace(NOTHING), "but is given nothing"),
    "bits": (lambda: ac.SpaceRules(weight_bits=NOTHING), "weight_bits must be a tuple"),
    "rules": (lambda: ac.load_rules(NOTHING), "a search-space file must be given by its path"),
    "pixels": (lambda: ac.ImageSet.of(NOTHING, [0]), "images and labels must be arrays"),
    "labels": (lambda: ac.ImageSet.of(IMAGES, 3), "images and labels must be arrays"),
    "mean": (lambda: ac.Normalization((NOTHING,), (1.0,)), "mean must hold finite numbers"),
    "classes": (lambda: _workload(classes=3), "'classes' must be a list, but is 3"),
    "keys": (lambda: ac.Study(study="s", workload={1: 2}), "'workload.model' must be given"),
    "example": (
        lambda: ac.compress(NETWORK, ac.Policy({}), NOTHING, X),
        "an example input must be one tensor",
    ),
    "criterion": (
        lambda: ac.Compressor(NETWORK, X, criterion=NOTHING),
        "a criterion must be a name or a function, but is nothing",
    ),
    "scores": (
        lambda: ac.Compressor(NETWORK, X, criterion=lambda *_: NOTHING),
        "a criterion must give scores by the group's name, but gave nothing",
    ),
    "format": (
        lambda: ac.export_network("nowhere", "knee", NOTHING, "x"),
        "a format must be one of onnx, packed, torch, but is nothing",
    ),
    "packed file": (lambda: ac.load_packed(NOTHING), "a packed file must be given by its path"),
    "no name": (lambda: _saved("", ac.Policy({})), "given by its path, but is ''"),
    "policy": (lambda: _saved("x", 3), "the one that its network was built by, but is 3"),
    "architecture": (
        lambda: _saved("x", ac.Policy({}), architecture=3),
        "a factory's name",
    ),
    "arguments": (lambda: _saved("x", ac.Policy({}), arguments=b""), "must be plain JSON values"),
    "sweep": (lambda: ac.Study.from_file(NOTHING), "a sweep file must be given by its path"),
    "provider": (
        lambda: ac.latency(NETWORK, X, provider=NOTHING),
        "provider must be one of onnxruntime, torch, but is nothing",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_types_are_refused_in_one_line(name: str) -> None:
    call, text = CALLS[name]
    with pytest.raises(ac.InputError) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_are_texts(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("study: s\n")
    overrides: Any = 3
    with pytest.raises(ac.InputError, match="one text or several must be given, but are 3"):
        ac.Study.from_file(sweep, overrides)
