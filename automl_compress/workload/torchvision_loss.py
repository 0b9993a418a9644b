"""The loss that a detector of torchvision computes in training, of raw outputs at hand.

Matching boxes with anchors and judging outputs is torchvision's own code, or what a class derived
from its detectors or heads has in its place. It is written to run inside the detector, so the
detector's own `forward` runs, with stand-ins where it would scale images and compute: they give the
sizes of the maps, the anchors, and the raw outputs of whatever network is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Final

from torch import Tensor, nn

from automl_compress.workload.placement import sent

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class DetectorLoss:
    """The loss of a detector of torchvision, without its weights.

    Args:
        detector: an SSD, a RetinaNet or an FCOS; not changed.
    """

    def __init__(self, detector: nn.Module) -> None:
        self._detector = _bare(detector, {})
        self._head = _weightless(detector.get_submodule("head"))

    def __deepcopy__(self, _: Any) -> DetectorLoss:
        """Itself: it never changes, and networks that have it are copied often."""
        return self

    def __call__(
        self,
        found: Mapping[str, Tensor],
        boxes: Tensor,
        anchors: Tensor,
        grids: Iterable[tuple[int, int]],
    ) -> Tensor:
        """The sum of the loss's parts.

        Args:
            found: raw outputs (n, places, ...) float32, by the names that the head gives them.
            boxes: (n, m, 6), see `workload.boxes`, inside the image. As in torchvision's own
                training, crowds are left out; so are boxes without an area.
            anchors: (places, 4) left, top, right, bottom in pixels.
            grids: (h, w) of every map that the head looks at.

        Raises:
            Exception: what the detector's own code raises; `AttributeError` where it needs weights
                or the head has no loss.
        """
        head = _bare(self._head, self._head._modules)
        vars(head)["forward"] = lambda _: dict(found)
        maps = {str(i): boxes.new_empty(1, 1, *grid) for i, grid in enumerate(grids)}
        targets = [_target(rows) for rows in boxes]
        detector: Any = _bare(
            self._detector,
            {
                "transform": _Giving((SimpleNamespace(tensors=None), targets)),
                "backbone": _Giving(maps),
                "head": head,
                "anchor_generator": _Giving([sent(anchors, boxes.device)] * len(boxes)),
            },
        ).train()
        losses: Mapping[str, Tensor] = detector.forward([], targets)
        first, *others = losses.values()
        return sum(others, first)


class _Giving(nn.Module):
    """A stand-in that gives the same whatever it is given."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self._given = given

    def forward(self, *_: Any) -> Any:
        """What it was made with."""
        return self._given


def _bare(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """A copy without parameters, buffers and hooks, and with other modules inside."""
    other = copy.copy(module)
    vars(other).update(_parameters={}, _buffers={}, _modules=dict(children))
    vars(other).update({name: {} for name in _HOOKS})
    return other


def _weightless(module: nn.Module) -> nn.Module:
    """A copy without parameters, buffers and hooks, inside either."""
    children = module._modules.items()
    return _bare(module, {name: child and _weightless(child) for name, child in children})


def _target(rows: Tensor) -> dict[str, Tensor]:
    """What torchvision is told of one image's (m, 6) boxes; its class 0 is none."""
    left, top, right, bottom, kind, crowd = rows.unbind(1)
    real = rows[(kind >= 0) & (crowd == 0) & (right > left) & (bottom > top)]
    return {"boxes": real[:, :4], "labels": real[:, 4].long() + 1}
