"""Training: baselines, sparsity before a search, and the recovery of what it found.

Names are imported on first use, so that a process that needs no torch does not load it. The
package is callable, because `automl_compress.recover` is both this package and the function that
users call: `import automl_compress as ac; ac.recover(model, policy, images)`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from automl_compress.recover.baseline import Trained, train_network
    from automl_compress.recover.measurement import Measurement, measure
    from automl_compress.recover.recovery import Recovered, recover, recover_policy
    from automl_compress.recover.settings import (
        BASELINE,
        DETECTOR_BASELINE,
        DETECTOR_RECOVERY,
        DETECTOR_SPARSITY,
        SPARSITY,
        Augmentation,
        RecoverySettings,
        TrainingSettings,
        find_device,
        section_of,
        title_of,
    )
    from automl_compress.recover.sparsity import SparsitySettings
    from automl_compress.recover.training import Listener, Standing
    from automl_compress.recover.training_mode import training_heads
    from automl_compress.space import Policy
    from automl_compress.workload import ImageSet, Normalization

_PLACES = {
    "BASELINE": "automl_compress.recover.settings",
    "DETECTOR_BASELINE": "automl_compress.recover.settings",
    "DETECTOR_RECOVERY": "automl_compress.recover.settings",
    "DETECTOR_SPARSITY": "automl_compress.recover.settings",
    "Augmentation": "automl_compress.recover.settings",
    "Listener": "automl_compress.recover.training",
    "Measurement": "automl_compress.recover.measurement",
    "Recovered": "automl_compress.recover.recovery",
    "RecoverySettings": "automl_compress.recover.settings",
    "SPARSITY": "automl_compress.recover.settings",
    "SparsitySettings": "automl_compress.recover.sparsity",
    "Standing": "automl_compress.recover.training",
    "Trained": "automl_compress.recover.baseline",
    "TrainingSettings": "automl_compress.recover.settings",
    "find_device": "automl_compress.recover.settings",
    "title_of": "automl_compress.recover.settings",
    "measure": "automl_compress.recover.measurement",
    "recover": "automl_compress.recover.recovery",
    "recover_policy": "automl_compress.recover.recovery",
    "section_of": "automl_compress.recover.settings",
    "train_network": "automl_compress.recover.baseline",
    "training_heads": "automl_compress.recover.training_mode",
}

__all__ = [
    "BASELINE",
    "DETECTOR_BASELINE",
    "DETECTOR_RECOVERY",
    "DETECTOR_SPARSITY",
    "SPARSITY",
    "Augmentation",
    "Listener",
    "Measurement",
    "Recovered",
    "RecoverySettings",
    "SparsitySettings",
    "Standing",
    "Trained",
    "TrainingSettings",
    "find_device",
    "measure",
    "recover",
    "recover_policy",
    "section_of",
    "title_of",
    "train_network",
    "training_heads",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


class _CallablePackage(ModuleType):
    """This package, callable as the function `recovery.recover`."""

    def __call__(
        self,
        model: nn.Module,
        policy: Policy,
        images: ImageSet,
        normalization: Normalization | None = None,
        **settings: Any,
    ) -> nn.Module:
        """Build and train the network a policy describes; see `recovery.recover`."""
        from automl_compress.recover.recovery import recover

        return recover(model, policy, images, normalization, **settings)


sys.modules[__name__].__class__ = _CallablePackage
