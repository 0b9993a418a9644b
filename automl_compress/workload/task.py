"""What a network does with an example, and how good it is at that."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from automl_compress.errors import EstimateError, WorkloadError


@dataclass(frozen=True)
class Score:
    """How good a network's answers are.

    Attributes:
        metrics: the task's quality by name, a share in [0, 1]; with its standard error, named
            `<quality>_se`, where answers were not counted.
        images: that were answered.
        further: other metrics that readers know, shares by name; nothing is decided by them.
    """

    metrics: dict[str, float]
    images: int
    further: dict[str, float]


STRATA: Final = 8
"""Parts of a sample whose images are alike."""


@dataclass(frozen=True, eq=False)
class Sample:
    """How images were drawn that do not count alike.

    Attributes:
        weights: (n,) float64, above 0, how much every image counts, 1 on average.
        strata: (n,) int64 in 0..`STRATA` - 1; those of one are alike.
        pool: how many images they were drawn from.
    """

    weights: Tensor
    strata: Tensor
    pool: int


class Task(ABC):
    """What networks are asked for."""

    name: ClassVar[str]
    quality: ClassVar[str]
    """Name of the metric that networks are judged by, a share in [0, 1]."""

    @property
    def blank(self) -> tuple[float, ...] | None:
        """(c,) pixel on the 0..1 scale that says nothing to a network which scales images itself.

        None where that is the normalization's mean.
        """
        return None

    @abstractmethod
    def check_output(self, model: str, output: Any, classes: int) -> None:
        """Check what a network gives for one example.

        Args:
            model: the network's name, for messages.
            output: what it gave.
            classes: that the data have.

        Raises:
            WorkloadError: it is not what the task asks for.
        """

    @abstractmethod
    def answers(self, outputs: Tensor) -> Tensor:
        """What a network says of n images, on the processor.

        Args:
            outputs: (n, ...) raw, finite.
        """

    @abstractmethod
    def score_answers(self, answers: Tensor, labels: Tensor) -> Score:
        """The score of `answers` to n images with (n, ...) labels."""

    def divergences(self, outputs: Tensor, original: Tensor) -> Tensor | None:  # noqa: ARG002
        """How far answers to n images are from the original network's.

        Args:
            outputs: (n, ...) raw.
            original: (n, ...) raw, of the original network.

        Returns:
            (n,) Kullback-Leibler divergences in nats, at least 0; None where answers are no
            probabilities.
        """
        return None

    def margins(self, outputs: Tensor) -> Tensor | None:  # noqa: ARG002
        """How near answers to n images are to being others.

        Args:
            outputs: (n, ...) raw.

        Returns:
            (n,) differences of outputs, at least 0; None where no single one decides.
        """
        return None

    @abstractmethod
    def scores(
        self, outputs: Iterable[Tensor], labels: Tensor, sample: Sample | None = None
    ) -> Iterator[Score]:
        """Score a network, as far as its answers are known.

        Args:
            outputs: of one batch of images after the other.
            labels: (n, ...) of all images.
            sample: how the images were drawn; None where all count alike, as they do wherever
                `margins` knows nothing.

        Yields:
            A score of all images so far, where that is known before the end; at last that of all.

        Raises:
            EstimateError: an output is not finite.
        """

    @abstractmethod
    def own_loss(self, outputs: Tensor) -> Tensor:
        """The loss of outputs against what they decide themselves, the mean over the images.

        It asks for no label; its slopes say how decisions depend on the network. Those of a
        distance to the same outputs would all be zero.

        Args:
            outputs: (n, ...) raw, as the network gave them.

        Raises:
            WorkloadError: they are none of the task.
        """

    @abstractmethod
    def distance(self, outputs: Tensor, target: Tensor) -> Tensor:
        """How far outputs are from those of another network, the mean over the images.

        Args:
            outputs: (n, ...) raw.
            target: (n, ...) raw.

        Raises:
            WorkloadError: they are none of the task.
        """

    def score(
        self, outputs: Iterable[Tensor], labels: Tensor, sample: Sample | None = None
    ) -> Score:
        """The score on all images, see `scores`."""
        *_, last = self.scores(outputs, labels, sample)
        return last


@dataclass(frozen=True)
class Classification(Task):
    """One class an example: the largest of (n, classes) logits is the answer."""

    name: ClassVar[str] = "classification"
    quality: ClassVar[str] = "accuracy"

    def check_output(self, model: str, output: Any, classes: int) -> None:
        """See `Task.check_output`."""
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
            raise WorkloadError(
                f"model '{model}' must return logits of shape (n, {classes}) for n examples, but "
                f"for one returned {shown_output(output)}; return the logits alone"
            )
        if output.shape[1] != classes:
            raise WorkloadError(
                f"model '{model}' must have one output a class, but has {output.shape[1]} outputs "
                f"for {classes} classes; correct model_args or the data"
            )
        check_finite_output(model, output, "logits")

    def answers(self, outputs: Tensor) -> Tensor:
        """(n,) classes."""
        return outputs.argmax(dim=1).cpu()

    def divergences(self, outputs: Tensor, original: Tensor) -> Tensor:
        """(n,) of the class probabilities: what softer labels distillation would have to teach."""
        found, wanted = (logits.double().log_softmax(dim=1) for logits in (outputs, original))
        return (wanted.exp() * (wanted - found)).sum(dim=1).clamp(min=0.0)

    def margins(self, outputs: Tensor) -> Tensor:
        """(n,) by how much the largest logit exceeds the second."""
        largest = outputs.topk(min(2, outputs.shape[1]), dim=1).values
        return largest[:, 0] - largest[:, -1]

    def score_answers(self, answers: Tensor, labels: Tensor) -> Score:
        """The share of right ones."""
        right = int((answers == labels).sum())
        return Score({self.quality: right / len(labels)}, len(labels), {})

    def scores(
        self, outputs: Iterable[Tensor], labels: Tensor, sample: Sample | None = None
    ) -> Iterator[Score]:
        """The share of right answers after every batch."""
        right = torch.empty(0, dtype=torch.bool)
        for logits in outputs:
            check_finite(logits)
            expected = labels[len(right) : len(right) + len(logits)]
            right = torch.cat([right, self.answers(logits) == expected])
            if sample is None:
                metrics = {self.quality: int(right.sum()) / len(right)}
            else:
                share, error = weighted_share(right, sample)
                metrics = {self.quality: share, f"{self.quality}_se": error}
            yield Score(metrics, len(right), {})

    def own_loss(self, outputs: Tensor) -> Tensor:
        """The cross-entropy to the largest logit's class."""
        logits = _logits(outputs)
        return F.cross_entropy(logits, logits.detach().argmax(dim=1))

    def distance(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `divergence`."""
        return divergence(_logits(outputs), _logits(target))


CLASSIFICATION: Final = Classification()


def weighted_share(right: Tensor, sample: Sample) -> tuple[float, float]:
    """The share of right answers to images that do not count alike.

    Args:
        right: (n,) of bool, of the first n images of the sample, n >= 1.
        sample: how all of them were drawn.

    Returns:
        The weighted share, in [0, 1], and its standard error: of a sample from strata (Cochran
        1977, "Sampling Techniques", 5.3), with what another pool would change, and with one answer
        more, for no sample without mistakes shows that there are none. For 14 compressed networks
        of CIFAR-10 and 200 draws of 512 images, it is 0.96 to 1.19 times what shares scatter by.
    """
    n, counts = len(right), right.double()
    weights = sample.weights[:n] / sample.weights[:n].sum()
    share = min(1.0, float(weights @ counts))  # the sum of the weights is rounded

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(STRATA, dtype=torch.float64).index_add_(0, strata, values)

    strata = sample.strata[:n]
    members = sums(torch.ones(n, dtype=torch.float64))
    centres = sums(weights * counts) / sums(weights)
    squares = sums((weights * (counts - centres[strata])).square())
    alone = (members == 1)[strata]  # its scatter is that of all
    within = float((squares * members / (members - 1).clamp(min=1.0)).sum())
    within += float(weights[alone].square().sum()) * share * (1.0 - share)
    pool = share * (1.0 - share) / sample.pool
    return share, math.sqrt(within + pool + 1.0 / (n + 2) ** 2)


def divergence(outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of softened class probabilities, times temperature squared.

    Args:
        outputs: (n, classes, ...) logits of the student.
        target: (n, classes, ...) logits of the teacher.
        temperature: above 0.
    """
    return temperature**2 * F.kl_div(
        (outputs / temperature).log_softmax(1),
        (target / temperature).log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )


def _logits(outputs: Any) -> Tensor:
    """(n, classes, ...) outputs that hold classes.

    Raises:
        WorkloadError: they are something else.
    """
    if isinstance(outputs, Tensor) and outputs.dim() >= 2 and outputs.shape[1] >= 2:
        return outputs
    tensor = isinstance(outputs, Tensor)
    what = f"of shape {tuple(outputs.shape)}" if tensor else f"a {type(outputs).__name__}"
    raise WorkloadError(
        f"a loss without labels needs a network whose output holds classes along axis 1, but it is "
        f"{what}; choose criteria that ask for none, such as l1 and magnitude"
    )


def shown_output(output: Any) -> str:
    """What a network gave, for messages: its shape or type."""
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def check_finite_output(model: str, output: Tensor, what: str) -> None:
    """Check the outputs of a network that a user gave.

    Raises:
        WorkloadError: they are not finite.
    """
    if not torch.isfinite(output).all():
        raise WorkloadError(
            f"model '{model}' must return finite {what}, but returned NaN or infinity for a "
            f"training example; check its weights and data.mean and data.std"
        )


def check_finite(outputs: Tensor) -> None:
    """Check the outputs of a compressed network.

    Raises:
        EstimateError: they are not finite.
    """
    if not math.isfinite(float(outputs.sum())):
        raise EstimateError("the compressed network's outputs are not finite")
