"""The contract of everything that says how good a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from automl_compress.evaluate.evaluation import Evaluation
from automl_compress.space import Policy


class Estimator(ABC):
    """Says how good a policy is. Pure: for one identity, one policy has one answer."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Hash of everything that can change an answer: network, data, settings, version."""

    @abstractmethod
    def estimate(self, policy: Policy) -> Evaluation:
        """Measure a policy; whatever goes wrong becomes a failed evaluation."""
