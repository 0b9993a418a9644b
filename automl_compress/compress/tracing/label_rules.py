"""How labels travel through PyTorch's operations.

Every tensor that carries channels has labels of its own shape, kept `compact`. An operation that
moves values moves labels likewise; one that combines values unites their labels; one that is not
known freezes what enters it. So concatenation, flattening, padding and channel shuffle need no
knowledge of the modules around them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch._ops import OpOverload

from automl_compress.compress.modules import tensors_in
from automl_compress.compress.tracing.labels import (
    FIXED,
    ZERO,
    ChannelClasses,
    Labels,
    along,
    compact,
    lead,
    varying,
)
from automl_compress.compress.tracing.reductions import (
    PRODUCTS,
    REDUCTIONS,
    is_reduction,
    reduced_axes,
)

Found = Tensor | None | list[Tensor | None]
"""Compact labels of an output, or of each output; None without channels."""


class LabelRules:
    """Labels of the outputs of single operations.

    Args:
        classes: where labels are united and frozen.
        labels_of: compact labels of a tensor, or None.
        reduced: told of every reduction over channels: the axis, and the labels along it.
        multiplied: told of every product that channels make larger: their labels.
    """

    def __init__(
        self,
        classes: ChannelClasses,
        labels_of: Callable[[Tensor], Tensor | None],
        reduced: Callable[[int, Labels], None],
        multiplied: Callable[[Labels], None],
    ) -> None:
        self._classes = classes
        self._labels_of = labels_of
        self._reduced = reduced
        self._multiplied = multiplied

    def __call__(self, func: OpOverload, args: tuple[Any, ...], output: Any) -> Found:
        """Labels of what an operation gave; what it does not understand is frozen."""
        inputs = list(tensors_in(args))
        if all(self._labels_of(tensor) is None for tensor in inputs):
            return None
        name = func._schema.name.partition("::")[2]
        rule = _RULES.get(name.rstrip("_"))
        if not all(tensor.numel() for tensor in inputs):
            self.freeze(inputs, "no values reach it on the example input")
            return None
        if rule is not None:
            return rule(self, func, args, output)
        if torch.Tag.pointwise in func.tags or name.rstrip("_") in _POINTWISE:
            return self.combine(inputs, output)
        if name in _SPATIAL:
            return self._spatial(name, args, output)
        if name in _SHAPES_ONLY:
            return None
        self.freeze(inputs, _PRODUCT if name in _PRODUCTS else f"its channels pass '{name}'")
        return None

    def freeze(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Freeze all channels of some tensors."""
        for tensor in tensors:
            labels = self._labels_of(tensor)
            if labels is not None:
                self._classes.freeze(labels.numpy().ravel(), reason)

    def unite(self, one: Tensor, other: Tensor) -> Tensor:
        """Unite labels of equal shape, pairwise."""
        shape = [max(sizes) for sizes in zip(one.shape, other.shape, strict=True)]
        one, other = one.expand(shape), other.expand(shape)
        self._classes.unite(one.numpy().ravel(), other.numpy().ravel())
        return self.roots(torch.where(one == ZERO, other, one))

    def roots(self, labels: Tensor) -> Tensor:
        """Compact labels, each the smallest of its class."""
        return compact(torch.from_numpy(self._classes.roots(labels.numpy())))

    def combine(self, inputs: list[Tensor], output: Tensor) -> Tensor | None:
        """Labels of an elementwise operation.

        A tensor of a single channel that is spread over many, as a mask of positions is, stays as
        it is and couples none of them.
        """
        labelled = [
            (t, lead(n, output.dim())) for t in inputs if (n := self._labels_of(t)) is not None
        ]
        axes = set().union(*(varying(labels) for _, labels in labelled))
        found: Tensor | None = None
        for tensor, labels in labelled:
            if not varying(labels) and any(_spread(tensor, output, axis) for axis in axes):
                self.freeze([tensor], "its channel is spread over others")
            elif found is None:
                found = labels
            elif varying(found) <= varying(labels) or varying(labels) <= varying(found):
                found = self.unite(found, labels)
            else:
                self.freeze(inputs, "its channels meet channels along another axis")
                return None
        assert found is not None
        for tensor in inputs:
            if self._labels_of(tensor) is None and any(
                _differs(tensor, output, axis) for axis in varying(found)
            ):
                self._classes.freeze(found.numpy().ravel(), _FIXED_TENSOR)
                return None
        return found

    def _activate(self, func: OpOverload, args: tuple[Any, ...], output: Any) -> Found:
        """Elementwise in its first operand; what else goes in or out is room for its own work."""
        del func
        if isinstance(output, Tensor):
            return self.combine([args[0]], output)
        return [self.combine([args[0]], output[0]), *(None for _ in output[1:])]

    def _spatial(self, name: str, args: tuple[Any, ...], output: Any) -> Found:
        """Pooling and resizing: the last axes change, channels do not."""
        labels = self._labels_of(args[0])
        first = output if isinstance(output, Tensor) else output[0]
        digits = re.search(r"([123])d", name)
        moved = int(digits[1]) if digits else 2
        if labels is None or max(varying(labels), default=0) >= first.dim() - moved:
            self.freeze(tensors_in(args), f"its channels pass '{name}'")
            return None
        return labels if isinstance(output, Tensor) else [labels, *(None for _ in output[1:])]

    def _permute(self, func: OpOverload, args: tuple[Any, ...], output: Any) -> Found:
        del output
        labels = self._labels_of(args[0])
        assert labels is not None
        moved: Tensor = func(labels.expand(args[0].shape), *args[1:])
        return compact(moved)

    def _pick(self, func: OpOverload, args: tuple[Any, ...], output: Any) -> Found:
        """Slicing and indexing: understood where it leaves the channels' own axis alone."""
        labels = self._labels_of(args[0])
        if labels is None:
            self.freeze(tensors_in(args), _SLICED)
            return None
        del output
        picked = func(labels.expand(args[0].shape), *args[1:])
        many = not isinstance(picked, Tensor)
        found = [compact(part) for part in (picked if many else [picked])]
        before = labels.squeeze()
        if not all(torch.equal(part.squeeze(), before) for part in found):
            self.freeze([args[0]], _SLICED)
            return None
        return [*found] if many else found[0]

    def _slice(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        """One of several equal parts of the channels' axis, like a split that gives it alone.

        Code that computes its place from the width finds it in a smaller network, too.
        """
        labels = self._labels_of(args[0])
        axis = args[1] if len(args) > 1 else 0
        whole, part = args[0].shape[axis], output.shape[axis]
        start = (args[2] if len(args) > 2 else None) or 0
        start = min(max(start + whole * (start < 0), 0), whole)
        equal = part and whole % part == start % part == 0 and len(args) < 5
        if labels is None or axis % labels.dim() not in varying(labels) or not equal:
            return self._pick(func, args, output)
        parts = labels.chunk(whole // part, axis)
        for other in parts[1:]:
            self.unite(parts[0], other)
        return self.roots(parts[start // part])

    def _split(self, func: OpOverload, args: tuple[Any, ...], output: Any) -> Found:
        """Equal parts of an axis: the parts must keep the same channels."""
        del output
        labels = self._labels_of(args[0])
        assert labels is not None
        axis = (args[2] if len(args) > 2 else 0) % labels.dim()
        parts = func(labels.expand(args[0].shape), *args[1:])
        if axis not in varying(labels):
            return [compact(part) for part in parts]
        if len({part.shape for part in parts}) > 1:
            self.freeze([args[0]], _SLICED)
            return None
        for part in parts[1:]:
            self.unite(compact(parts[0]), compact(part))
        return [self.roots(part) for part in parts]

    def _gate(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        """Two halves of an axis, one of which gates the other."""
        del func, output
        labels = self._labels_of(args[0])
        assert labels is not None
        axis = args[1] if len(args) > 1 else -1
        one, other = labels.expand(args[0].shape).chunk(2, axis)
        return self.unite(compact(one), compact(other))

    def _shuffle(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        """Channels that change places with each other, or with positions, in fixed parts."""
        axis = args[0].dim() - 3 if "pixel" in func._schema.name else 1
        labels = self._labels_of(args[0])
        if labels is None or varying(labels) != {axis}:
            self.freeze([args[0]], f"its channels pass '{func._schema.name[6:]}'")
            return None
        line, parts = labels.flatten(), args[1]
        if "unshuffle" in func._schema.name:
            line = line.repeat_interleave(parts**2)
        elif "pixel" in func._schema.name:
            blocks = line.reshape(-1, parts**2)
            line = self.unite(blocks, blocks[:, :1])[:, 0]
        else:
            rows = line.reshape(parts, -1)
            line = self.unite(rows, rows[:1]).expand(rows.shape).t().flatten()
        return along(line.numpy(), axis, output.dim())

    def _reshape(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        """An axis that is split in several: all but the last are fixed numbers of parts.

        Where channels and positions are divided anew, and each place of the first axis is of one
        channel, whole runs of them go with a channel.
        """
        del func
        labels = self._labels_of(args[0])
        assert labels is not None
        moved = labels.expand(args[0].shape).reshape(output.shape)
        for before, after in _axis_blocks(args[0].shape, output.shape):
            if not varying(labels) & set(before) or len(after) < 2:
                continue
            if len(before) > 1 and varying(compact(moved)) & set(after) == {after[0]}:
                continue
            if len(before) > 1:
                self.freeze([args[0]], "its channels are reshaped together with other axes")
                return None
            for axis in after[:-1]:
                moved = self.unite(compact(moved), compact(moved.narrow(axis, 0, 1)))
                moved = moved.expand(output.shape)
        return compact(moved)

    def _concatenate(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        axis = (args[1] if len(args) > 1 else 0) % output.dim()
        parts = [tensor for tensor in args[0] if tensor.numel()]
        stacked = func._schema.name == "aten::stack"
        found = [self._filled(part) for part in parts]
        found = [labels.unsqueeze(axis) for labels in found] if stacked else found
        others = set().union(*map(varying, found)) - {axis}
        sizes = [1 if stacked else part.shape[axis] for part in parts]
        shapes = [
            [
                size if k == axis else (length if k in others else 1)
                for k, length in enumerate(output.shape)
            ]
            for size in sizes
        ]
        return compact(
            torch.cat([labels.expand(s) for labels, s in zip(found, shapes, strict=True)], axis)
        )

    def _filled(self, tensor: Tensor) -> Tensor:
        """Labels of a tensor; those without channels count as fixed, or as zeros."""
        labels = self._labels_of(tensor)
        if labels is None:
            labels = torch.tensor(FIXED if bool(tensor.any()) else ZERO)
            labels = labels.reshape((1,) * tensor.dim())
        return labels

    def _pad(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        del func, output
        labels = self._labels_of(args[0])
        assert labels is not None
        pads, value = list(args[1]), args[2] if len(args) > 2 else 0
        for place in range(len(pads)):
            if labels.dim() - 1 - place // 2 not in varying(labels):
                pads[place] = 0
        if any(pad < 0 for pad in pads):
            self.freeze([args[0]], _SLICED)
            return None
        return torch.constant_pad_nd(labels, pads, FIXED if value else ZERO)

    def _reduce(self, func: OpOverload, args: tuple[Any, ...], output: Any) -> Found:
        labels = self._labels_of(args[0])
        assert labels is not None
        axes = reduced_axes(func, args)
        reduced = {axis % labels.dim() for axis in axes} or set(range(labels.dim()))
        if varying(labels) and varying(labels) <= reduced:
            self._reduce_channels(func, args[0], labels)
            return None
        for axis in varying(labels) & reduced:  # over branches: they must keep the same channels
            labels = self.unite(labels, labels.narrow(axis, 0, 1))
        first = output if isinstance(output, Tensor) else output[0]
        if first.dim() < labels.dim():
            labels = labels.reshape(
                [n for axis, n in enumerate(labels.shape) if axis not in reduced]
            )
        return labels if isinstance(output, Tensor) else [labels, *(None for _ in output[1:])]

    def _reduce_channels(self, func: OpOverload, operand: Tensor, labels: Tensor) -> None:
        """What is left has no channels: a mean of fewer is a mean, too."""
        axis, *others = varying(labels)
        if others or not is_reduction(func):
            self.freeze([operand], f"'{func._schema.name[6:]}' runs over its channels")
            return
        self._reduced(axis, labels.numpy().ravel())

    def _product(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        """A sum over channels of both operands, or one that leaves those of an operand."""
        del func
        last = output.dim() - 1
        given = [(args[0], last, last - 1), (args[1], last - 1, last)]
        summed, carried = [], []
        for tensor, inner, outer in given:
            labels = self._labels_of(tensor)
            if labels is not None and varying(labels) == {inner}:
                summed.append(labels.flatten())
            elif labels is not None and varying(labels) == {outer}:
                carried.append(labels)
            else:
                self.freeze([tensor], _PRODUCT)
        if len(summed) == 2:
            line = self.unite(*summed).numpy()
            self._multiplied(line)
            self._reduced(last, line)
            return None
        if summed or len(carried) != 1:
            self.freeze(args[:2], _PRODUCT)
            return None
        self._multiplied(carried[0].numpy().ravel())
        return carried[0]

    def _put(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        """Whole rows written into zeros, or over other rows: the channels' axis stays."""
        del func
        target, value = self._labels_of(args[0]), self._labels_of(args[2])
        rows = len(args[1]) == 1 and args[2].shape[1:] == output.shape[1:]
        empty = target is None and not bool(args[0].any())
        if value is None or not rows or 0 in varying(value) or not (empty or target is not None):
            self.freeze(tensors_in(args), "its channels are written into another tensor")
            return None
        return value if target is None else self.unite(target, value)

    def _restride(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        """A tensor with one long axis keeps its values whatever its strides."""
        del func
        labels = self._labels_of(args[0])
        assert labels is not None
        if labels.dim() != output.dim() or output.numel() != labels.numel():
            self.freeze([args[0]], _SLICED)
            return None
        return labels

    def _copy(self, func: OpOverload, args: tuple[Any, ...], output: Tensor) -> Found:
        del func
        if self._labels_of(args[0]) is None:
            self.freeze(tensors_in(args), "its channels are written into another tensor")
            return None
        return self.combine([args[0], args[1]], output)


def _axis_blocks(
    before: tuple[int, ...], after: tuple[int, ...]
) -> Iterable[tuple[list[int], list[int]]]:
    """Smallest blocks of axes with equal numbers of entries; axes of size 1 are in none."""
    ins = [axis for axis, size in enumerate(before) if size > 1]
    outs = [axis for axis, size in enumerate(after) if size > 1]
    while ins and outs:
        left, right = [ins.pop(0)], [outs.pop(0)]
        sizes = [before[left[0]], after[right[0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                left.append(ins.pop(0))
                sizes[0] *= before[left[-1]]
            else:
                right.append(outs.pop(0))
                sizes[1] *= after[right[-1]]
        yield left, right


def _spread(tensor: Tensor, output: Tensor, axis: int) -> bool:
    """Whether an elementwise operation repeats a tensor along an axis of its output."""
    own = axis - output.dim() + tensor.dim()
    return output.shape[axis] > 1 and (own < 0 or tensor.shape[own] == 1)


def _differs(tensor: Tensor, output: Tensor, axis: int) -> bool:
    """Whether an elementwise operation reads other values along an axis of its output."""
    own = axis - output.dim() + tensor.dim()
    return own >= 0 and not bool((tensor == tensor.narrow(own, 0, 1)).all())


_FIXED_TENSOR: Final = "its channels are combined with a tensor that cannot be cut"
_SLICED: Final = "some of its channels are picked by the network's code"
_PRODUCT: Final = "its channels are multiplied with other activations"
_PRODUCTS: Final = frozenset({"addmm", "baddbmm", "mv", "dot", "convolution"})
_POINTWISE: Final = frozenset(
    {
        *("_to_copy", "detach", "alias", "hardswish", "native_dropout", "lift_fresh"),
        # Tagged from PyTorch 2.12 on or later, some in place only:
        *("celu", "elu", "hardsigmoid", "hardtanh", "leaky_relu", "selu"),
        *(
            "masked_fill",
            "fill",
            "zero",
            "zeros_like",
            "ones_like",
            "empty_like",
            "where",
            "contiguous",
        ),
    }
)
"""Elementwise operations that PyTorch does not tag as such."""
_SPATIAL: Final = frozenset(
    {
        *(f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg", "max") for n in (1, 2, 3)),
        *(f"_adaptive_avg_pool{n}d" for n in (2, 3)),
        *(f"max_pool{n}d_with_indices" for n in (2, 3)),
        *(f"adaptive_max_pool{n}d" for n in (1, 2, 3)),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"),
        *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample_trilinear3d"),
        *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
        *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        *("roi_align", "grid_sampler_2d"),
    }
)
_SHAPES_ONLY: Final = frozenset({"new_zeros", "new_empty", "new_full", "new_ones", "is_same_size"})
_Rule = Callable[[LabelRules, OpOverload, tuple[Any, ...], Any], Found]
_RULES: Final[dict[str, _Rule]] = {
    **dict.fromkeys(
        ("permute", "transpose", "t", "squeeze", "unsqueeze", "expand"), LabelRules._permute
    ),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), LabelRules._reshape),
    **dict.fromkeys(("split", "unsafe_split", "split_with_sizes"), LabelRules._split),
    **dict.fromkeys(
        ("select", "index", "index_select", "roll", "flip", "unbind", "unfold", "repeat"),
        LabelRules._pick,
    ),
    **dict.fromkeys(
        (*REDUCTIONS, "_softmax", "_log_softmax", "cumsum"), LabelRules._reduce
    ),
    "slice": LabelRules._slice,
    "cat": LabelRules._concatenate,
    "stack": LabelRules._concatenate,
    "constant_pad_nd": LabelRules._pad,
    "glu": LabelRules._gate,
    **dict.fromkeys(PRODUCTS, LabelRules._product),
    **dict.fromkeys(
        ("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
        LabelRules._shuffle,
    ),
    **dict.fromkeys(("log_sigmoid_forward", "rrelu_with_noise"), LabelRules._activate),
    "index_put": LabelRules._put,
    "copy": LabelRules._copy,
    "as_strided": LabelRules._restride,
}  # fmt: skip
