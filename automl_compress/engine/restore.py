"""A study's network and estimators, loaded from its settings: at its start and ever after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.engine.config import StudyConfig, config_of_mapping
from automl_compress.engine.latency import recorded_model
from automl_compress.errors import StudyError
from automl_compress.evaluate.latency import WithLatency
from automl_compress.evaluate.network import NetworkEstimator
from automl_compress.ledger import Manifest
from automl_compress.recover.fixed import fixed_in
from automl_compress.space import Policy
from automl_compress.workload import Workload, load_workload


def stated_config(
    manifest: Manifest, workload: Workload | None = None, *, with_space: bool = True
) -> StudyConfig:
    """The settings a study's manifest states.

    Args:
        manifest: the study's.
        workload: given again, where the study was given a loaded one.
        with_space: whether its space is to be made again; without, the file that states it may be
            gone, for the manifest holds its genes.

    Raises:
        StudyError: a workload is needed and not given, or the reverse, or a setting is wrong.
    """
    settings = dict(manifest.config)
    if workload is None and "workload" not in settings:
        raise StudyError(
            "a study goes on with the workload it began with, but that of "
            f"'{manifest.study}' was given in Python, loaded; give it there again, as workload="
        )
    if workload is not None:
        if "workload" in settings:
            raise StudyError(
                "a workload must be given again only where the study was given a loaded one, but "
                f"'{manifest.study}' states how to load its own; leave workload= out"
            )
        settings["workload"] = workload
    if not with_space:
        settings["space"] = "auto"
    return config_of_mapping(settings, Path(manifest.environment.get("base", ".")))


def load_estimators(config: StudyConfig) -> tuple[Workload, NetworkEstimator, NetworkEstimator]:
    """The workload, the search's estimator and the one on the final test images.

    The last repairs networks as `final_repair` says, and counts in float32 and on all images.

    Raises:
        InputError: the network or its data cannot be loaded or do not fit, or a network that was
            given loaded has been changed since.
    """
    given = config.workload
    if isinstance(given, Workload):
        given.check_unchanged()
        workload = given
    else:
        workload = load_workload(given)
    search = NetworkEstimator(workload, config.estimate)
    repair = config.final_repair
    final = replace(
        config.estimate, images=None, split="test", repair=repair, precision="float32", floor=0.0
    )
    same = repair == search.settings.repair
    compressor = search.compressor if same else search.compressor.with_repair(repair)
    return workload, search, NetworkEstimator(workload, final, compressor)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many torch threads inside; sums may depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Restored:
    """A study's network, able to build and measure what the search built and measured.

    Args:
        config: the study's settings.
        workload: the network and its data.
        search: the search's estimator.
        test: the estimator on the final test images.
    """

    config: StudyConfig
    workload: Workload
    search: NetworkEstimator
    test: NetworkEstimator

    @property
    def compressor(self) -> Compressor:
        """What builds the networks that are measured on the test images."""
        return self.test.compressor

    @property
    def fixed(self) -> frozenset[str]:
        """Names of its network's parameters that the workload's factory froze."""
        return fixed_in(self.compressor.model, self.workload.model, self.workload.fixed)

    def build(self, policy: Policy) -> nn.Module:
        """The network that is measured on the test images for a policy.

        Raises:
            SpaceError: the policy does not fit the network.
        """
        with torch_threads(self.config.engine.threads):
            return self.compressor.build(policy)

    def test_quality(self, network: Callable[[Tensor], Tensor]) -> float:
        """Quality of a network on the final test images, in [0, 1].

        Raises:
            EstimateError: an output is not finite.
        """
        with torch_threads(self.config.engine.threads), torch.inference_mode():
            return self.test.quality(network)

    def test_quality_of_answers(self, network: Callable[[Tensor], Tensor]) -> float:
        """The same of a network that maps images to answers, see `workload.Task.answers`."""
        with torch_threads(self.config.engine.threads), torch.inference_mode():
            return self.test.quality_of_answers(network)

    def promised_bytes(self, policy: Policy) -> int:
        """Bytes the search counted for a policy."""
        return int(self.compressor.cost(policy)["size_bytes"])

    def example_input(self) -> Tensor:
        """The first training image as network input."""
        return self.workload.example_input()

    def calibration_images(self) -> Tensor:
        """(n, ...) training images that the search calibrated by."""
        settings = self.config.estimate
        drawn = self.workload.splits.train.draw(settings.calibration_images, settings.seed)
        return drawn.tensor(self.workload.normalization)

    def some_test_images(self, count: int) -> Tensor:
        """(n, ...) final test images, at most `count`."""
        split = self.workload.splits.test
        drawn = split if count >= len(split) else split.draw(count, self.config.estimate.seed)
        return drawn.tensor(self.workload.normalization)


def _builds_the_same(manifest: Manifest, search: NetworkEstimator, test: NetworkEstimator) -> bool:
    """Whether a study's policies become the networks that it measured.

    Studies that do not say which those were are held to how they were measured too.
    """
    if manifest.networks:
        return manifest.networks == (search.networks, test.networks)
    identities = (search.identity, test.identity)
    if manifest.latency:
        model = recorded_model(manifest.latency, search.compressor)
        identities = (WithLatency(search, model).identity, WithLatency(test, model).identity)
    return identities == (manifest.estimator, manifest.test_estimator)


def restore_study(folder: str | Path, workload: Workload | None = None) -> Restored:
    """Load a study's network and data again.

    Args:
        folder: the study's.
        workload: given again, where the study was given a loaded one.

    Raises:
        StudyError: the folder holds no study, or its network or data have changed.
        WorkloadError: the network or its data cannot be loaded.
    """
    manifest = Manifest.read(Path(folder))
    config = stated_config(manifest, workload, with_space=False)
    with torch_threads(config.engine.threads):
        workload, search, test = load_estimators(config)
    if not _builds_the_same(manifest, search, test):
        raise StudyError(
            f"a study's networks must be built from the weights, data and version it ran with, "
            f"but those of '{folder}' have changed; restore them or search again"
        )
    return Restored(config, workload, search, test)
