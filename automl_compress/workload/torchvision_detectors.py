"""Detectors of torchvision that look once: SSD, RetinaNet and FCOS, as a user's factory makes them.

As torchvision writes them they take a list of images and give a list of boxes, after scaling,
normalizing and non-maximum suppression. `SingleStage` is the network inside: images (n, 3, h, w) of
the size it was made for to one tensor of raw outputs, under torchvision's own names of all weights.
`AnchorDetection` says what the raw outputs mean. Detectors that look twice, such as Faster R-CNN,
have no such form: what their second half computes depends on what the first has found.

Deviations from torchvision's own answers: the 1,000 best detections of an image compete, not as
many of every class or grid, and at most 100 stay, as COCO counts them.

They are trained by torchvision's own losses, see `torchvision_loss`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.errors import WorkloadError
from automl_compress.workload.box_task import BoxTask, Suppression
from automl_compress.workload.detection_loss import entropy, exclusive_focal, quality_focal
from automl_compress.workload.mean_precision import require_detection
from automl_compress.workload.task import check_finite_output, shown_output
from automl_compress.workload.torchvision_loss import DetectorLoss

_PACKAGE: Final = "torchvision.models.detection."
_KINDS: Final = ("ssd.SSD", "retinanet.RetinaNet", "fcos.FCOS")
_STEPS: Final = ("forward", "postprocess_detections")
"""Methods by which a detector comes from images to boxes."""
_SCALING: Final = ("forward", "normalize", "resize", "batch_images")
"""Methods by which its transform makes its input of images."""
PARTS: Final = ("cls_logits", "bbox_regression", "bbox_ctrness")
"""What a head gives, by torchvision's names; the last by FCOS alone."""
_EDGES: Final = 4
_MARGIN: Final = 0.05
"""Sizes of the anchor that are added to distances where boxes are compared with a teacher's."""
_LARGEST: Final = math.log(1000 / 16)
"""Logarithm of how much larger than its anchor a box is at most (torchvision's `BoxCoder`)."""


@dataclass(frozen=True, eq=False)
class AnchorDetection(BoxTask):
    """Boxes said as changes of anchors; raw outputs are (n, channels, places).

    The channels of a place are a logit for no class and one for every class, four numbers for the
    box and, where it is `centred`, a logit that says how near the place is to the box's centre.

    Attributes:
        classes: how many there are, the one for no class left out.
        image_shape: (h, w) of the network's input.
        anchors: (places, 4) left, top, right, bottom in pixels.
        weights: of shifts and logarithms of sizes, in x and y (Ren et al. 2015, Faster R-CNN, eq.
            2); None where boxes are distances of their edges from the anchor's centre, in sizes
            of the anchor.
        exclusive: whether classes exclude one another (softmax) or not (sigmoid).
        centred: whether there is a logit of the centre.
        keeping: which detections are kept.
        grids: (h, w) of the maps whose cells have the anchors.
        own: the loss that torchvision trains it by; None where its head has another form of loss.
        mean: (c,) pixel on the 0..1 scale that the network takes off.
    """

    anchors: Tensor
    weights: tuple[float, float, float, float] | None
    exclusive: bool
    centred: bool
    keeping: Suppression
    grids: tuple[tuple[int, int], ...]
    own: DetectorLoss | None
    mean: tuple[float, ...]

    @property
    def suppression(self) -> Suppression:
        """See `BoxTask.suppression`."""
        return self.keeping

    def check_output(self, model: str, output: Any, classes: int) -> None:
        """See `Task.check_output`."""
        require_detection()
        channels = 1 + classes + _EDGES + self.centred
        if not isinstance(output, Tensor) or output.shape[1] != channels:
            given = output.shape[1] - channels + classes if isinstance(output, Tensor) else 0
            too_few = "count classes of boxes from 0, without that one"
            too_many = "name all classes of the model in data.classes"
            raise WorkloadError(
                f"model '{model}' must have a class more than the data, for no class at all, as "
                f"torchvision counts them: {classes + 1}, but has {given + 1}"
                f"{'' if given else ' and gives ' + shown_output(output)}; correct "
                f"model_args.num_classes, or {too_few if given < classes else too_many}"
            )
        check_finite_output(model, output, "outputs")

    @property
    def blank(self) -> tuple[float, ...]:
        """See `Task.blank`."""
        return self.mean

    def check_trainable(self) -> None:
        """See `BoxTask.check_trainable`."""
        if self.own is None:
            raise untrainable()

    def loss(self, outputs: Tensor, boxes: Tensor) -> Tensor:
        """The loss of torchvision's detector, see `DetectorLoss`."""
        self.check_trainable()
        assert self.own is not None
        boxes = torch.cat([self.inside(boxes[..., :_EDGES]), boxes[..., _EDGES:]], -1)
        parts = torch.split(outputs.transpose(1, 2), self.channels, 2)
        found = {name: part.contiguous() for name, part in zip(PARTS, parts, strict=False)}
        return self.own(found, boxes, self.anchors, self.grids)

    def distance(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `detector_distance`, of which this is the like.

        Where classes exclude one another, the cross-entropy is that of all of them and no class at
        all. Places count by the teacher's squared score: there are thousands of a low one.
        """
        from torchvision.ops import generalized_box_iou_loss

        outputs, target = outputs.float(), target.float()
        weight = self.decoded(target)[1].amax(1).square()
        logits, codes, *centre = torch.split(outputs, self.channels, 1)
        its_logits, its_codes, *its_centre = torch.split(target, self.channels, 1)
        if self.weights is None:  # a ReLU gives distances, so that boxes may be without an area
            codes, its_codes = codes + _MARGIN, its_codes + _MARGIN
        boxes, its_boxes = (self._boxes(c.transpose(1, 2)) for c in (codes, its_codes))
        off = generalized_box_iou_loss(boxes, its_boxes)
        if self.centred:
            off = off + entropy(centre[0], its_centre[0].sigmoid())[:, 0]
        if self.exclusive:
            of_classes = exclusive_focal(logits, its_logits.softmax(1))
        else:
            of_classes = quality_focal(logits[:, 1:], its_logits[:, 1:].sigmoid())
        total: Tensor = of_classes.sum() + (off * weight).sum()
        return total / weight.sum().clamp(min=1.0)

    @property
    def channels(self) -> list[int]:
        """How many of a place belong to each of `PARTS`."""
        return [1 + self.classes, _EDGES, *([1] if self.centred else [])]

    def decoded(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """See `BoxTask.decoded`."""
        kinds = 1 + self.classes
        logits = outputs[:, :kinds]
        scores = (logits.softmax(1) if self.exclusive else logits.sigmoid())[:, 1:]
        if self.centred:
            scores = (scores * outputs[:, -1:].sigmoid()).sqrt()
        boxes = self._boxes(outputs[:, kinds : kinds + _EDGES].transpose(1, 2))
        return self.inside(boxes), scores

    def _boxes(self, codes: Tensor) -> Tensor:
        """(n, places, 4) left, top, right, bottom from (n, places, 4) codes."""
        anchors = self.anchors.to(codes)
        sizes = anchors[:, 2:] - anchors[:, :2]
        centres = anchors[:, :2] + 0.5 * sizes
        if self.weights is None:
            near, far = codes[..., :2] * sizes, codes[..., 2:] * sizes
            return torch.cat([centres - near, centres + far], -1)
        changes = codes / codes.new_tensor(self.weights)
        middles = centres + changes[..., :2] * sizes
        halves = 0.5 * sizes * changes[..., 2:].clamp(max=_LARGEST).exp()
        return torch.cat([middles - halves, middles + halves], -1)


def untrainable() -> WorkloadError:
    """What is said where a loss is asked for that there is not."""
    return WorkloadError(
        "a detector of torchvision is trained by its own loss, which must be a sum of what its "
        "'compute_loss' gives for raw outputs without reading weights, but this one's head has "
        "another; search and export it with criteria that ask for none, such as l1 and magnitude, "
        "or give the head a 'compute_loss' as torchvision's has"
    )


class SingleStage(nn.Module):
    """The network inside a detector of torchvision.

    Args:
        detector: an SSD, a RetinaNet or an FCOS.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head
        self.transform, self.anchor_generator = detector.transform, detector.anchor_generator
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.transform, f"image_{name}"))
            self.register_buffer(name, values.reshape(1, -1, 1, 1), persistent=False)
        self.weights = getattr(detector.box_coder, "weights", None)
        self.exclusive = _kind(detector) == "ssd.SSD"
        self.parts = PARTS if _kind(detector) == "fcos.FCOS" else PARTS[:2]
        self.loss = DetectorLoss(detector)
        self.keeping = Suppression(detector.score_thresh, detector.nms_thresh)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (n, channels, places) of images (n, 3, h, w) in [0, 1]."""
        found = self.head(self._maps((x - self.mean) / self.std))
        return torch.cat([found[part] for part in self.parts], 2).transpose(1, 2)

    def _maps(self, x: Tensor) -> list[Tensor]:
        """The backbone's maps; one that has a single map may give it as it is."""
        found = self.backbone(x)
        return [found] if isinstance(found, Tensor) else list(found.values())

    @property
    def classes(self) -> int:
        """How many there are, the one for no class left out."""
        head: Any = self.head.classification_head
        kinds: int = head.num_columns if self.exclusive else head.num_classes
        return kinds - 1

    def detection(self, name: str, image_shape: tuple[int, int]) -> AnchorDetection:
        """The task of the detector on images of a size.

        Args:
            name: of the model, for messages.
            image_shape: (h, w).

        Raises:
            WorkloadError: torchvision would scale or pad such images.
        """
        image = torch.zeros(1, 3, *image_shape)
        with torch.no_grad():
            batch, _ = self.transform(list(image))
            found = tuple(batch.tensors.shape[2:])
            if found != image_shape:
                raise WorkloadError(
                    f"images must have the size that model '{name}' looks at, but they are "
                    f"{_shown(image_shape)} and it would make them {_shown(found)}; set "
                    f"data.image_size: [{found[0]}, {found[1]}]"
                )
            maps = self._maps(image)
            (anchors,) = self.anchor_generator(batch, maps)
            task = AnchorDetection(
                self.classes,
                image_shape,
                anchors,
                self.weights,
                self.exclusive,
                "bbox_ctrness" in self.parts,
                self.keeping,
                tuple((m.shape[2], m.shape[3]) for m in maps),
                self.loss,
                tuple(self.mean.flatten().tolist()),
            )
            return task if _has_loss(task) else replace(task, own=None)


def looking_once(model: nn.Module) -> nn.Module:
    """The network inside a detector of torchvision that looks once; any other model itself.

    Raises:
        WorkloadError: it is such a detector, but computes otherwise than torchvision's.
    """
    if not _kind(model):
        return model
    _check_methods(model, _STEPS)
    _check_methods(model.transform, _SCALING)
    return SingleStage(model)


def _check_methods(part: Any, names: tuple[str, ...]) -> None:
    """Check that a detector's part has torchvision's own methods, for others are not looked into.

    Raises:
        WorkloadError: it has others.
    """
    base = next((b for b in type(part).__mro__ if b.__module__.startswith(_PACKAGE)), None)
    for name in names:
        if base is None or getattr(part, name) != getattr(base, name).__get__(part):
            raise WorkloadError(
                f"a detector of torchvision must come from images to boxes as torchvision's own "
                f"does, but {type(part).__name__} has another '{name}'; move what it adds into the "
                f"backbone or the head, or return raw outputs, see workload.detection"
            )


def _has_loss(task: AnchorDetection) -> bool:
    """Whether a detector's loss can be had of raw outputs; heads of users may have any other."""
    outputs = torch.zeros(1, sum(task.channels), len(task.anchors))
    box = torch.tensor([[[0.0, 0.0, *reversed(task.image_shape), 0.0, 0.0]]])
    try:
        return bool(task.loss(outputs, box).ndim == 0)
    except Exception:  # whatever the head's own code raises
        return False


def _kind(model: nn.Module) -> str:
    """Which of `_KINDS` a model is; empty for none of them. torchvision need not be loaded."""
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__)
    kinds = (name.removeprefix(_PACKAGE) for name in names if name.startswith(_PACKAGE))
    return next((kind for kind in kinds if kind in _KINDS), "")


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
