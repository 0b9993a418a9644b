from __future__ import annotations

import io
import itertools
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from automl_compress.errors import EngineError, InputError, InterruptedStudy
from automl_compress.recover import (
    Augmentation,
    Trained,
    TrainingSettings,
    find_device,
    section_of,
)
from automl_compress.recover.averaging import WeightAverage
from automl_compress.recover.losses import LabelsLoss
from automl_compress.recover.schedule import learning_rate
from automl_compress.recover.settings import Optimizer, RecoverySettings, uses_bfloat16
from automl_compress.recover.training import Standing, Trainer, _write
from automl_compress.workload import ImageSet, Normalization, load_weights

SETTINGS = TrainingSettings(
    epochs=4, batch=8, rate=0.1, device="cpu", augment=Augmentation(crop=1, cutout=2)
)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )


def _images(count: int = 26) -> ImageSet:
    """Three classes that a bright band tells apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 60, (count, 1, 6, 6), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[0, 2 * label : 2 * label + 2] += 150
    return ImageSet.of(pixels, labels)


def _trainer(settings: TrainingSettings = SETTINGS, **changes: Any) -> Trainer:
    options = {"identity": "one", "judges": _images(9), **changes}
    return Trainer(_network(), _images(), Normalization.unit(1), settings, LabelsLoss(), **options)


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in trainer.network.state_dict().items()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_rate_rises_and_follows_a_cosine() -> None:
    rates = [learning_rate(step, 100, 0.4, 0.1) for step in range(100)]
    assert rates[:3] == pytest.approx([0.04, 0.08, 0.12])
    assert rates[9] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert all(one > two for one, two in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 10, 0.4, 0.0) == 0.4
    assert learning_rate(9, 10, 0.4, 1.0) == 0.4


def test_the_average_by_hand() -> None:
    network = nn.BatchNorm1d(2)
    average = WeightAverage(network, 0.5)
    expected = 1.0
    for update, value in enumerate((3.0, -1.0, 2.0, 5.0, 7.0, 4.0, 9.0, 1.0, 8.0, 6.0, 2.0)):
        with torch.no_grad():
            network.weight.fill_(value)
            network.num_batches_tracked += 1
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    average.copy_to(network)
    assert network.weight.tolist() == pytest.approx([expected] * 2)
    assert int(network.num_batches_tracked) == 11


def test_training_learns_and_gives_the_averaged_weights() -> None:
    heard: list[Standing] = []
    settings = replace(SETTINGS, epochs=20, augment=Augmentation(0, flip=False), average=0.9)
    trainer = _trainer(settings)
    trainer.run(listener=heard.append)
    last = _weights(trainer)
    trainer.use_average()
    assert [s.epoch for s in heard] == list(range(1, 21))
    assert heard[-1].loss < heard[0].loss
    assert heard[-1].quality == 1.0
    assert heard[-1].seconds_left == 0.0
    assert not trainer.network.training
    assert not _same(_weights(trainer), last)
    assert _same(_weights(trainer), trainer._average.state())  # type: ignore[union-attr]


def test_strided_convolutions_of_few_channels_read_first_while_it_trains() -> None:
    """Their gradients may be wrong otherwise, see `compress.strided`."""
    torch.manual_seed(0)
    shortcut = nn.Conv2d(1, 4, 1, 2)
    network = nn.Sequential(shortcut, nn.Flatten(), nn.Linear(4 * 9, 3))
    seen = []

    def loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append("_conv_forward" in vars(shortcut))
        return LabelsLoss()(model, inputs, labels)

    settings = replace(SETTINGS, epochs=1)
    Trainer(network, _images(), Normalization.unit(1), settings, loss, "one").run()
    assert seen == [True] * 3
    assert "_conv_forward" not in vars(shortcut)


def test_the_global_generator_is_left_alone() -> None:
    trainer = _trainer()
    state = torch.get_rng_state()
    trainer.run()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides() -> None:
    first, again, other = _trainer(), _trainer(), _trainer(replace(SETTINGS, seed=1))
    for trainer in (first, again, other):
        trainer.run()
    assert _same(_weights(first), _weights(again))
    assert not _same(_weights(first), _weights(other))


@pytest.mark.parametrize(
    ("stop_at", "optimizer"), [(1, "sgd"), (3, "sgd"), (5, "adamw"), (11, "sgd")]
)
def test_interrupted_and_resumed_is_undisturbed(
    tmp_path: Path, stop_at: int, optimizer: Optimizer
) -> None:
    settings = replace(SETTINGS, optimizer=optimizer)
    whole = _trainer(settings)
    whole.run()
    checkpoint = tmp_path / "checkpoint"
    steps = itertools.count(1)

    def interrupt() -> None:
        if next(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedStudy, match=f"step {stop_at} of 12"):
        _trainer(settings, after_step=interrupt).run(checkpoint)
    assert signal.getsignal(signal.SIGINT) is before
    resumed = _trainer(settings)
    heard: list[Standing] = []
    resumed.run(checkpoint, heard.append)
    assert _same(_weights(whole), _weights(resumed))
    assert heard[0].step > stop_at
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    first = _trainer()
    first.run(tmp_path / "checkpoint")
    heard: list[Standing] = []
    again = _trainer()
    again.run(tmp_path / "checkpoint", heard.append)
    assert not heard
    assert _same(_weights(first), _weights(again))


def test_a_checkpoint_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint"
    trainer = _trainer()
    trainer.run(checkpoint)
    content = checkpoint.read_bytes()

    def half(_: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        trainer._save(checkpoint)
    assert checkpoint.read_bytes() == content
    assert list(tmp_path.iterdir()) == [checkpoint]


class _Full(io.BytesIO):
    """A file on a disk that has little room."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > 5_000:
            raise OSError("No space left on device")
        return super().write(content)


def test_a_full_disk_is_called_so() -> None:
    with pytest.raises(OSError, match="No space left"):
        _write({"weights": torch.ones(100), "more": torch.ones(9_000)}, _Full())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_broken_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="remove it"):
        _trainer().run(checkpoint)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    _trainer().run(tmp_path / "checkpoint")
    with pytest.raises(InputError, match="another training's"):
        _trainer(identity="two").run(tmp_path / "checkpoint")


@pytest.mark.parametrize(("step", "weight"), [(8, math.nan), (9, 1e30)])
def test_a_training_that_diverges_stops_and_keeps_the_last_good_state(
    tmp_path: Path, step: int, weight: float
) -> None:
    """Also where weights are still finite after an epoch's last step, and outputs no more."""
    checkpoint = tmp_path / "checkpoint"
    steps = itertools.count(1)
    trainer = _trainer()

    def harm() -> None:
        if next(steps) == step:
            with torch.no_grad():
                for parameter in trainer.network.parameters():
                    parameter.fill_(weight)

    trainer._after_step = harm
    with pytest.raises(EngineError, match=r"lower 'rate'.*last good state"):
        trainer.run(checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    assert content["step"] == 6  # the end of the second epoch
    assert all(bool(value.isfinite().all()) for value in content["network"].values())


def test_weights_that_are_tied_are_written_and_read_again(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        network[2].weight = network[0].weight
        return network

    network, again = tied(), tied()
    Trained(network, {}).write(tmp_path / "w.safetensors")
    load_weights(again, tmp_path / "w.safetensors")
    assert again[2].weight is again[0].weight
    assert _same(dict(network.state_dict()), dict(again.state_dict()))


def test_vectors_are_not_decayed() -> None:
    trainer = _trainer(replace(SETTINGS, weight_decay=0.3))
    decays = {
        id(p): group["weight_decay"]
        for group in trainer._optimizer.param_groups
        for p in group["params"]
    }
    for parameter in trainer.network.parameters():
        assert decays[id(parameter)] == (0.3 if parameter.dim() > 1 else 0.0)


def test_adamw_shrinks_weights_as_sgd_does_and_follows_the_signs() -> None:
    """Loshchilov & Hutter 2019: the first step is the rate in every direction, and the decay."""
    plain, settings = (
        RecoverySettings.from_section(section_of(texts)).training
        for texts in ((), ("optimizer=adamw",))
    )
    assert settings.rate * settings.weight_decay == pytest.approx(plain.rate * plain.weight_decay)
    assert settings.rate == pytest.approx(plain.rate / 100)
    settings = replace(settings, epochs=1, batch=26, warmup=0.0, average=0.0, device="cpu")
    trainer = _trainer(settings)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.run()
    moved = 0
    for name, after in trainer.network.named_parameters():
        kept = before[name]
        if after.dim() > 1:
            kept = kept * (1 - settings.rate * settings.weight_decay)
        step = (after.detach() - kept).abs()
        assert bool((step <= settings.rate * 1.01).all())
        moved += int((step > settings.rate * 0.9).sum())
    assert moved > 100


def test_settings_beside_another_optimizer_are_kept() -> None:
    texts = ("optimizer=adamw", "rate=0.3", "momentum=0.5")
    training = RecoverySettings.from_section(section_of(texts)).training
    assert (training.optimizer, training.rate, training.momentum) == ("adamw", 0.3, 0.5)


def test_bfloat16_trains_float32_weights() -> None:
    trainer = _trainer(replace(SETTINGS, precision="bfloat16"))
    trainer.run()
    assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}
    plain = _trainer(replace(SETTINGS, precision="float32"))
    plain.run()
    assert not _same(_weights(plain), _weights(trainer))


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_bfloat16_is_used_where_processors_have_instructions_for_it(
    avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert uses_bfloat16("auto", torch.device("cpu")) == (avx512 or amx)
    assert not uses_bfloat16("float32", torch.device("cpu"))
    assert uses_bfloat16("bfloat16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("tpu", "cuda:N"),
        ("cuda:x", "cuda:N"),
        ("cuda:", "cuda:N"),
        ("cuda:²", "cuda:N"),
        ("cpu:7", "cuda:N"),
        ("cuda:99", "must exist"),
    ],
)
def test_devices_that_are_not_there_are_refused(device: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_device(device)


@pytest.mark.parametrize("crop", [6, 100_000])
def test_images_are_not_moved_out_of_sight(crop: int) -> None:
    with pytest.raises(InputError, match=rf"less than the 6 pixels .* is {crop}; lower it"):
        _trainer(replace(SETTINGS, augment=Augmentation(crop)))
    _trainer(replace(SETTINGS, augment=Augmentation(5)))


def test_settings_are_read_from_texts() -> None:
    texts = ("epochs=3", "rate=1e-3", "augment.flip=false", "precision=float32", "distill=0")
    settings = RecoverySettings.from_section(section_of(texts, epochs=9))
    assert settings.training.epochs == 3
    assert settings.training.rate == 1e-3
    assert settings.training.augment == Augmentation(flip=False)
    assert settings.distill == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs", "KEY.SUBKEY=VALUE"),
        ("epochs=0", "at least 1"),
        ("epochs=many", "an integer"),
        ("epoch=3", "did you mean 'epochs'"),
        ("augment.crops=3", "did you mean 'crop'"),
        ("precision=int8", "must be one of"),
        ("optimizer=adam", "did you mean 'adamw'"),
        ("rate=-1", "at least 0"),
        ("augment=3", "a mapping"),
        ("seed=99999999999999999999999", "at most 4294967295"),
    ],
)
def test_wrong_settings_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        RecoverySettings.from_section(section_of([text]))


class _Viewing(nn.Module):
    """Flattens as PyTorch's tutorial does, which takes no channels-last values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.fc = nn.Linear(4 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()
        return self.fc(x.view(len(x), -1))


class _Volumes(nn.Module):
    """Takes an image's rows for a volume."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x.unsqueeze(1)).mean((2, 3, 4)))


@pytest.mark.parametrize(("channels", "kind"), [(1, _Viewing), (3, _Viewing), (3, _Volumes)])
def test_networks_that_take_no_channels_last_are_trained_as_they_are(
    channels: int, kind: Any
) -> None:
    torch.manual_seed(0)
    gray = _images()
    images = ImageSet.of(np.repeat(gray.images, channels, 1), gray.labels)
    network = kind(channels) if kind is _Viewing else kind()
    before = network.fc.weight.detach().clone()
    trainer = Trainer(
        network,
        images,
        Normalization.unit(channels),
        replace(SETTINGS, epochs=1),
        LabelsLoss(),
        "one",
        judges=images.take(range(9)),
    )
    heard: list[Standing] = []
    trainer.run(listener=heard.append)
    assert heard[-1].quality is not None
    assert not torch.equal(before, network.fc.weight)


def test_a_device_without_enough_memory_is_told_with_what_is_kept(tmp_path: Path) -> None:
    class Filling(LabelsLoss):
        calls = 0

        def __call__(self, network: nn.Module, inputs: torch.Tensor, labels: Any) -> Any:
            self.calls += 1
            if self.calls > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().__call__(network, inputs, labels)

    trainer = Trainer(_network(), _images(), Normalization.unit(1), SETTINGS, Filling(), "one")
    path = tmp_path / "state"
    with pytest.raises(
        EngineError, match=r"memory of cpu, but one of 8 images .* lower 'batch'"
    ) as e:
        trainer.run(path)
    assert str(path) in str(e.value)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_training_leaves_the_precision_of_products_as_the_user_set_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", False)
    seen = []
    trainer = _trainer(
        replace(SETTINGS, epochs=1),
        after_step=lambda: seen.append((cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)),
    )
    trainer.run()
    assert set(seen) == {(False, True, False)}
    assert not cudnn.deterministic


def test_a_checkpoint_goes_on_on_another_device() -> None:
    settings = RecoverySettings.from_section(section_of("device=cuda:1"))
    elsewhere = RecoverySettings.from_section(section_of("device=cpu"))
    assert settings.to_dict() != elsewhere.to_dict()
    assert settings.deciding() == elsewhere.deciding() == RecoverySettings().to_dict()
