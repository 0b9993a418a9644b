"""Which channels are coupled, found by following labels through one run of the network.

Every layer gives its output channels labels, and its readers are told which labels arrive where.
What lies between layers moves and unites labels (`label_rules`). The result is not trusted:
`trial` cuts every group and compares what all layers compute.

The idea of coupled groups is that of Fang et al. 2023 (DepGraph); following positions through the
operations themselves, in place of a graph of modules, covers reshapes, concatenations, channel
shuffle and padding alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from automl_compress.compress.attention import HeadProduct, HeadScores
from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.compress.kinds import (
    BATCH_NORMS,
    CONVOLUTIONS,
    INSTANCE_NORMS,
    LAST_NORMS,
    LAYERS,
    TRANSPOSED,
    channel_axis,
    parameter_axis,
)
from automl_compress.compress.modules import tensors_in
from automl_compress.compress.structure import (
    Axis,
    ChannelGroup,
    GroupMember,
    LayerShape,
    Reduction,
    WrittenProduct,
)
from automl_compress.compress.tracing.attention_forms import across_heads
from automl_compress.compress.tracing.dispatch import Mode, Operation
from automl_compress.compress.tracing.label_rules import LabelRules
from automl_compress.compress.tracing.labels import FIXED, ChannelClasses, Labels, along, varying
from automl_compress.compress.tracing.reductions import is_counted

_OUTPUT: Final = "its channels are the network's output"
_IN_GROUPS: Final = "a transposed convolution in groups reads or writes its channels"
_POSITIONS: Final = "its channels are positions, which the network's code reduces"
_COMPUTED: Final = "its own code computes its weights, or more than a layer does"
_HEADS: Final = "its channels are the heads of an attention"
_LEAVES: Final = (
    *(*LAYERS, *BATCH_NORMS, *INSTANCE_NORMS, *LAST_NORMS, nn.GroupNorm),
    *(nn.PReLU, nn.Embedding, nn.MultiheadAttention, ChannelMap, HeadProduct),
)
"""Modules whose own tensors are understood as a whole, or not at all."""

Axes = dict[tuple[str, Axis], Labels]
"""By module and axis, the label of every place."""


def coupled_groups(
    model: nn.Module, example_input: Tensor, layers: tuple[LayerShape, ...]
) -> list[ChannelGroup]:
    """Groups in the network's order; every layer belongs to one, if only to a protected one.

    Args:
        model: a `working_copy`, in evaluation mode; not changed.
        example_input: (n, ...) what it takes.
        layers: those that run, in the network's order.
    """
    tracer = _Tracer(model)
    with torch.no_grad():
        tracer.run(example_input)
    names = [layer.name for layer in layers]
    groups = _groups(model, tracer, names)
    written = {name for group in groups for name in group.writers}
    reasons = ("its channels could not be followed", _COMPUTED)
    groups += [
        ChannelGroup(layer.name, layer.out_channels, (), reasons[layer.name in tracer.computed])
        for layer in layers
        if layer.name not in written
    ]
    order = {name: place for place, name in enumerate(names)}
    return sorted(groups, key=lambda group: order[group.first_writer])


class _Tracer:
    """Runs a network once and learns the labels at both ends of every layer."""

    def __init__(self, model: nn.Module) -> None:
        self.classes = ChannelClasses()
        self.axes: Axes = {}
        self.reductions: list[tuple[int, int, Labels]] = []
        self.products: list[tuple[int, Labels]] = []
        self._mixers: set[str] = set()
        self.computed: set[str] = set()
        self._reductions_seen = 0
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._free = dict(_free_tensors(model))
        self._labels: Any = WeakTensorKeyDictionary()
        self._rules = LabelRules(self.classes, self._labels_of, self._reduced, self._multiplied)
        self._running: list[nn.Module] = []
        self._inside = 0

    def run(self, example_input: Tensor) -> None:
        """Follow the network on an example."""
        with ExitStack() as stack:
            for module in self._names:
                if isinstance(module, _LEAVES):
                    stack.callback(module.register_forward_pre_hook(self._enter).remove)
                    stack.callback(module.register_forward_hook(self._leave).remove)
            stack.enter_context(_Operations(self._operation))
            stack.enter_context(_Functions(self._function))
            output = self._model(example_input)
        self._rules.freeze(tensors_in(output), _OUTPUT)
        for layer in (layer for module in self._names for layer in across_heads(module)):
            self.classes.freeze(self._axis(self._names[layer], "out", layer.out_features), _HEADS)
        for name in self._mixers:
            mixed = self.classes.roots(self.axes[name, "out"])
            for _, _, line in self.reductions:
                self.classes.freeze(line[np.isin(self.classes.roots(line), mixed)], _POSITIONS)

    def _labels_of(self, tensor: Tensor) -> Tensor | None:
        """Compact labels of a tensor; free parameters and buffers get theirs on first use."""
        found: Tensor | None = self._labels.get(tensor)
        if found is None and id(tensor) in self._free:
            axis = parameter_axis(tensor)
            labels = self._axis(self._free[id(tensor)], "out", tensor.shape[axis])
            found = self._labels[tensor] = along(labels, axis, tensor.dim())
        return None if found is None else self._rules.roots(found)

    def _set(self, tensor: Tensor, labels: Tensor | None) -> None:
        if labels is not None and bool((labels >= 0).any()):
            self._labels[tensor] = labels
        else:
            self._labels.pop(tensor, None)

    def _operation(self, func: OpOverload, args: tuple[Any, ...], output: Any) -> None:
        """Labels for what an operation outside the layers gave."""
        self._reductions_seen += is_counted(func)
        if self._inside:
            return
        try:
            found = self._rules(func, args, output)
        except Exception as reason:
            self._rules.freeze(
                tensors_in(args), f"its channels pass '{func}' ({type(reason).__name__})"
            )
            found = None
        outputs = list(tensors_in(output))
        given = found if isinstance(found, list) else [found] * len(outputs)
        for tensor, labels in zip(outputs, given, strict=True):
            self._set(tensor, labels)

    def _reduced(self, axis: int, labels: Labels) -> None:
        """Remember what the operation that runs reduces."""
        self.reductions.append((self._reductions_seen - 1, axis, labels))

    def _multiplied(self, labels: Labels) -> None:
        """Remember that the product that runs grows with channels."""
        self.products.append((self._reductions_seen - 1, labels))

    def _function(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function; those that layers are made of write and read whole axes."""
        if self._inside:
            return func(*args, **kwargs)
        module = self._running[-1] if self._running else None
        reader = _READERS.get(func)
        x = args[0] if args else kwargs.get("input")
        if reader is not None and isinstance(module, reader[0]) and _owns(module, args, kwargs):
            with self._asleep():
                output: Tensor = func(*args, **kwargs)
            self._set(output, reader[1](self, module, x))
            return output
        if func in _ATTENTION or func in _PRODUCTS:
            with self._asleep():
                output = func(*args, **kwargs)
            inputs = tensors_in([*args, *kwargs.values()])
            reason = f"its channels are read by '{func.__name__}'"
            if func in _PRODUCTS:
                reason += " in the network's own code, not by a layer"
                self.computed |= {self._names[module]} if isinstance(module, LAYERS) else set()
            self._rules.freeze(inputs, reason)
            return output
        return func(*args, **kwargs)

    @contextmanager
    def _asleep(self) -> Iterator[None]:
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._running.append(module)
        self._inside += isinstance(module, (ChannelMap, HeadProduct))

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._running.pop()
        if isinstance(module, ChannelMap):
            self._inside -= 1
            self._read(module, inputs[0], 1, module.in_channels)
            labels = self._axis(self._names[module], "out", module.out_channels)
            self._set(output, along(labels, 1, output.dim()))
        elif isinstance(module, HeadProduct):
            self._inside -= 1
            scores = isinstance(module, HeadScores)
            for x in inputs if scores else inputs[1:]:
                line = self._line(x, x.dim() - 1, module.width)
                line = self._join((self._names[module], "out"), line)
            self._set(output, None if scores else along(line, output.dim() - 1, output.dim()))

    def _axis(self, name: str, axis: Axis, size: int) -> Labels:
        """Labels of a module's axis, made on first use."""
        if (name, axis) not in self.axes:
            self.axes[name, axis] = self.classes.new(size)
        return self.axes[name, axis]

    def _line(self, x: Tensor, axis: int, size: int) -> Labels:
        """(size,) labels that arrive along one axis; all that meet at a place are united."""
        labels = self._labels_of(x)
        if labels is None:
            return np.full(size, FIXED)
        rows = labels.movedim(axis, -1).reshape(-1, labels.shape[axis]).numpy()
        line = np.broadcast_to(rows[0], (rows.shape[1],))
        for row in rows[1:]:
            self.classes.unite(line, row)
        return np.broadcast_to(self.classes.roots(line), (size,)).copy()

    def _read(self, module: nn.Module, x: Tensor, axis: int, size: int) -> Labels:
        """Labels that a module reads; those of all its uses are united.

        Channels that are its positions, as for what mixes tokens, stay.
        """
        found = self._labels_of(x)
        if found is not None and varying(found) and axis not in varying(found):
            name = self._names[module]
            self._rules.freeze([x], f"its channels are positions to '{name}', which mixes them")
            self._mixers.add(name)
            line = np.full(size, FIXED)
        else:
            line = self._line(x, axis, size)
        return self._join((self._names[module], "in"), line)

    def _join(self, key: tuple[str, Axis], line: Labels) -> Labels:
        if key in self.axes:
            self.classes.unite(self.axes[key], line)
        return self.axes.setdefault(key, line)

    def _convolution(self, module: Any, x: Tensor) -> Tensor:
        axis = channel_axis(module, x)
        labels = self._axis(self._names[module], "out", module.out_channels)
        if module.groups == 1:
            self._read(module, x, axis, module.in_channels)
        else:
            line = self._line(x, axis, module.in_channels)
            self._couple_blocks(np.concatenate([_blocks(line, module), _blocks(labels, module)], 1))
        return along(labels, axis, x.dim())

    def _transposed(self, module: Any, x: Tensor) -> Tensor | None:
        axis = channel_axis(module, x)
        labels = self._axis(self._names[module], "out", module.out_channels)
        if module.groups > 1:
            self.classes.freeze(labels, _IN_GROUPS)
            self._rules.freeze([x], _IN_GROUPS)
            return None
        self._read(module, x, axis, module.in_channels)
        return along(labels, axis, x.dim())

    def _couple_blocks(self, blocks: Labels) -> None:
        """Each group of a grouped layer, (groups, places), is cut as a whole."""
        whole = np.broadcast_to(blocks[:, -1:], blocks.shape)
        self.classes.unite(blocks.ravel(), whole.ravel())

    def _linear(self, module: Any, x: Tensor) -> Tensor | None:
        labels = self._axis(self._names[module], "out", module.out_features)
        self._read(module, x, x.dim() - 1, module.in_features)
        return along(labels, x.dim() - 1, x.dim())

    def _features(self, module: Any, x: Tensor) -> Tensor | None:
        """Modules that treat every channel alone, or groups of channels alone."""
        last = isinstance(module, LAST_NORMS)
        axis = x.dim() - 1 if last else min(1, x.dim() - 1)
        found = self._labels_of(x)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return found
        if last and found is not None and len(module.normalized_shape) > 1:
            self._rules.freeze([x], "its channels are normalized together with positions")
            return None
        line = self._join((self._names[module], "out"), self._line(x, axis, x.shape[axis]))
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            self._couple_blocks(_blocks(line, module))
        return None if found is None else along(self.classes.roots(line), axis, x.dim())


class _Operations(Mode):
    """Shows every basic operation, after it ran."""

    def __init__(self, seen: Callable[[OpOverload, tuple[Any, ...], Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def run(self, func: Operation, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Run an operation, then show it."""
        output = func(*args, **named)
        self._seen(func, args, output)
        return output


class _Functions(TorchFunctionMode):
    """Hands every function to another, which runs it."""

    def __init__(self, run: Callable[[Callable[..., Any], Any, Any], Any]) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._run(func, args, kwargs or {})


def _free_tensors(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Identity and name of parameters and buffers that a module uses in its own code."""
    for name, module in model.named_modules():
        if isinstance(module, _LEAVES):
            continue
        for last, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point() and tensor.numel() > 1:
                yield id(tensor), f"{name}.{last}".lstrip(".")


def _owns(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a function runs on a module's own weight, or a module without one."""
    weight = module._parameters.get("weight")
    return weight is None or any(item is weight for item in [*args, *kwargs.values()])


def _blocks(labels: Labels, module: Any) -> Labels:
    """(groups, places) labels of a grouped module."""
    groups = module.num_groups if isinstance(module, nn.GroupNorm) else module.groups
    return labels.reshape(groups, -1)


_Reader = Callable[[_Tracer, Any, Tensor], Tensor | None]
_READERS: Final[dict[Any, tuple[tuple[type[nn.Module], ...], _Reader]]] = {
    torch.conv1d: (CONVOLUTIONS, _Tracer._convolution),
    torch.conv2d: (CONVOLUTIONS, _Tracer._convolution),
    torch.conv3d: (CONVOLUTIONS, _Tracer._convolution),
    torch.conv_transpose1d: (TRANSPOSED, _Tracer._transposed),
    torch.conv_transpose2d: (TRANSPOSED, _Tracer._transposed),
    torch.conv_transpose3d: (TRANSPOSED, _Tracer._transposed),
    F.linear: ((nn.Linear,), _Tracer._linear),
    F.batch_norm: (BATCH_NORMS, _Tracer._features),
    F.instance_norm: (INSTANCE_NORMS, _Tracer._features),
    F.layer_norm: ((nn.LayerNorm,), _Tracer._features),
    F.rms_norm: ((nn.RMSNorm,), _Tracer._features),
    F.group_norm: ((nn.GroupNorm,), _Tracer._features),
    F.prelu: ((nn.PReLU,), _Tracer._features),
}
_PRODUCTS: Final = frozenset(f for f, (kinds, _) in _READERS.items() if kinds[0] in LAYERS)
"""Functions that only layers call with weights of their own."""
_ATTENTION: Final = (F.multi_head_attention_forward, F.scaled_dot_product_attention)


def _groups(model: nn.Module, tracer: _Tracer, layers: list[str]) -> list[ChannelGroup]:
    """Classes of the same places, put together; those that are frozen by their first writer."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    names_of_parts = [name for name, _ in (*model.named_modules(), *tensors)]
    order = {name: place for place, name in enumerate(names_of_parts)}
    keys = sorted(tracer.axes, key=lambda key: (order[key[0]], key[1] == "in"))
    axes = {key: tracer.classes.roots(tracer.axes[key]) for key in keys}
    reasons, doubts = tracer.classes.reasons(), tracer.classes.doubts()
    known = set(layers)
    found: dict[Any, list[int]] = defaultdict(list)
    lies_on = _places(axes)
    for root, places in lies_on.items():
        first = next((n for (n, axis), _ in places if axis == "out" and n in known), None)
        if first is not None:
            frozen = root in reasons
            found[first, frozen, () if frozen else tuple(places)].append(root)
    groups: list[ChannelGroup] = []
    names: dict[str, int] = defaultdict(int)
    for (first, _, _), roots in sorted(found.items(), key=lambda i: (i[0][1], -len(i[1]))):
        names[first] += 1
        name = first if names[first] == 1 else f"{first}#{names[first]}"
        roots = list(dict.fromkeys(axes[first, "out"][np.isin(axes[first, "out"], roots)].tolist()))
        reason = next((reasons[root] for root in roots if root in reasons), "")
        touched = {key for root in roots for key, _ in lies_on[root]}
        some = {key: labels for key, labels in axes.items() if key in touched}
        reductions = _reductions(tracer, roots)
        doubt = next((doubts[root] for root in roots if root in doubts), "")
        members = _members(some, roots)
        products = _products(tracer, roots)
        groups.append(ChannelGroup(name, len(roots), members, reason, reductions, products, doubt))
    return groups


def _places(axes: Axes) -> dict[int, list[tuple[tuple[str, Axis], int]]]:
    """By class, the axes it lies on and how many places it has there."""
    found: dict[int, list[tuple[tuple[str, Axis], int]]] = defaultdict(list)
    for key, labels in axes.items():
        roots, counts = np.unique(labels[labels >= 0], return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            found[root].append((key, count))
    return found


def _members(axes: Axes, roots: list[int]) -> tuple[GroupMember, ...]:
    """Where a group's classes lie; its channels are numbered as its first writer has them."""
    return tuple(
        GroupMember(name, axis, *found)
        for (name, axis), labels in axes.items()
        if (found := _found(labels, roots)) is not None
    )


def _reductions(tracer: _Tracer, roots: list[int]) -> tuple[Reduction, ...]:
    """What the network's code reduces of a group's classes."""
    return tuple(
        Reduction(call, axis, len(labels), *found)
        for call, axis, labels in tracer.reductions
        if (found := _found(tracer.classes.roots(labels), roots)) is not None
    )


def _products(tracer: _Tracer, roots: list[int]) -> tuple[WrittenProduct, ...]:
    """Products in the network's code that grow with a group's classes."""
    found = {
        (call, len(labels)): int(np.isin(tracer.classes.roots(labels), roots).sum())
        for call, labels in tracer.products
    }
    return tuple(
        WrittenProduct(call, size, count // len(roots))
        for (call, size), count in found.items()
        if count
    )


def _found(labels: Labels, roots: list[int]) -> tuple[Labels, Labels] | None:
    """(n,) places of some classes along an axis, and (n,) which class each is of, if any."""
    positions = np.flatnonzero(np.isin(labels, roots))
    if not len(positions):
        return None
    return positions, np.argsort(roots)[np.searchsorted(np.sort(roots), labels[positions])]
