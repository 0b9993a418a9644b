"""A network as a list of steps, that run fused and from the middle.

A network's `forward` says what is computed but not in which pieces. Followed once by torch.fx, it
becomes steps: a convolution with the sum and the ReLU behind it is one (oneDNN's post-operations,
which spare reading and writing the activations), everything else is as it was. Where a single
value connects all earlier steps with all later ones, it can be kept: another network that is the
same up to there goes on from it.

Networks that torch.fx cannot follow, or whose steps do not give what they give, have no program
and run as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from automl_compress.compress.fold import gain_and_offset
from automl_compress.compress.quantize import InputQuantizer
from automl_compress.errors import EstimateError

_RELUS: Final = {F.relu, torch.relu, torch.relu_}
_SUMS: Final = {operator.add, operator.iadd, torch.add}
_TOLERANCE: Final = 1e-4
"""Largest difference, over the largest output, that rounding explains."""


@dataclass
class Step:
    """One piece of a network's work.

    Args:
        node: what is done.
        value: the node whose value this step gives: `node` itself, or the last one fused with it.
        conv: name of the convolution, or empty for any other step.
        norm: name of the BatchNorm that is folded into it, or empty.
        other: node that is added to the convolution's output.
        relu: whether negative outputs become zero.
        last_uses: nodes whose values no later step reads.
    """

    node: fx.Node
    value: fx.Node
    conv: str = ""
    norm: str = ""
    other: fx.Node | None = None
    relu: bool = False
    last_uses: tuple[fx.Node, ...] = field(default=())

    def parts(self) -> list[fx.Node]:
        """All nodes that are done."""
        found = [self.value]
        while found[-1] is not self.node:
            found.append(next(x for x in found[-1].all_input_nodes if x is not self.other))
        return found


class Program:
    """The steps of one network, for any of its compressed forms.

    Args:
        model: the network, in evaluation mode.
        norms: BatchNorms that can be folded, with the layers they follow.
        graph: what torch.fx made of it.
        shapes: of every value, on an example.
    """

    def __init__(
        self,
        model: nn.Module,
        norms: Mapping[str, str],
        graph: fx.Graph,
        shapes: Mapping[fx.Node, tuple[int, ...]],
    ) -> None:
        self.steps = _steps(model, norms, graph, shapes)
        self.frontiers = _frontiers(self.steps, shapes)
        self.modules = _modules_of(self.steps)

    def run(
        self,
        bound: Bound,
        value: Tensor,
        start: int = 0,
        notice: Callable[[int, Tensor], None] = lambda _, __: None,
    ) -> Any:
        """The network's output.

        Args:
            bound: its tensors.
            value: the images, or, further on, the value of the step before `start`; steps that
                work in place change it.
            start: 0, or a frontier's place plus one.
            notice: is shown the value at every frontier behind `start`.
        """
        before = self.steps[start - 1].value if start else self.steps[0].node
        values: dict[fx.Node, Any] = {before: value}
        for place in range(max(start, 1), len(self.steps)):
            step = self.steps[place]
            values[step.value] = _run(step, bound, values)
            for node in step.last_uses:
                values.pop(node, None)
            if place in self.frontiers:
                notice(place, values[step.value])
        return values[self.steps[-1].value]


@dataclass(frozen=True)
class Bound:
    """A compressed form's modules and the tensors of its convolutions, ready to run.

    Args:
        modules: by name.
        kernels: weight and bias by convolution's name.
        dtype: of them.
    """

    modules: Mapping[str, nn.Module]
    kernels: Mapping[str, tuple[Tensor, Tensor | None]]
    dtype: torch.dtype


def follow(
    model: nn.Module, norms: Mapping[str, str], example: Tensor, forms: Sequence[nn.Module] = ()
) -> Program | None:
    """The program of a network, or None when it has none.

    Args:
        model: in evaluation mode; not changed.
        norms: BatchNorms that can be folded, with the layers they follow.
        example: (1, ...).
        forms: compressed forms of it that the program must serve too.
    """
    with torch.inference_mode(False), torch.no_grad():
        pair = torch.cat([example, example.flip(0) * 0.5])
        try:
            graph = _Tracer().trace(model)
            program = Program(model, norms, graph, _shapes(model, graph, pair))
            for network in (model, *forms):
                bound = bind(program, network, torch.float32)
                if not all(_alike(program.run(bound, x), network(x)) for x in (example, pair)):
                    return None
        except Exception:
            return None  # whatever torch.fx or a fused step cannot do is done unfused
        return program


def bind(program: Program, network: nn.Module, dtype: torch.dtype) -> Bound:
    """Take what a program needs from a network.

    Args:
        program: of its original.
        network: a compressed form, in evaluation mode.
        dtype: convolutions compute in.

    Raises:
        EstimateError: a weight is not finite.
    """
    modules = dict(network.named_modules())
    kernels = {}
    for step in program.steps:
        if step.conv:
            layer: Any = modules[step.conv]
            weight, bias = layer.weight, layer.bias
            if step.norm:
                gain, bias = gain_and_offset(modules[step.norm], bias)
                weight = weight * gain[:, None, None, None]
            if not bool(torch.isfinite(weight).all()):  # a fused ReLU would hide it
                raise EstimateError(f"the weights of '{step.conv}' are not finite")
            weight = weight.to(dtype=dtype, memory_format=torch.channels_last)
            kernels[step.conv] = (weight, None if bias is None else bias.to(dtype))
    return Bound(modules, kernels, dtype)


class _Tracer(fx.Tracer):
    """Goes into containers and blocks, not into layers."""

    proxy_buffer_attributes = True  # else buffers are taken for numbers that never change

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one step; those without parts are, whoever wrote them.

        Their forward may hold sizes, which differ between compressed forms.
        """
        ours = type(m).__module__.startswith("automl_compress.compress.")
        return ours or not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _shapes(model: nn.Module, graph: fx.Graph, x: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    found: dict[fx.Node, tuple[int, ...]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                found[n] = tuple(value.shape)
            return value

    Watch(model, graph=graph).run(x)
    return found


def _steps(
    model: nn.Module,
    norms: Mapping[str, str],
    graph: fx.Graph,
    shapes: Mapping[fx.Node, tuple[int, ...]],
) -> tuple[Step, ...]:
    fused: dict[fx.Node, Step] = {}
    for node in graph.nodes:
        if node.op == "call_module" and _fusable(model.get_submodule(str(node.target))):
            step = _fuse(model, norms, node, shapes, fused)
            fused.update(dict.fromkeys(step.parts(), step))
    steps = []
    for node in graph.nodes:
        step = fused.get(node, Step(node, node))
        if step.value is node:  # a step waits until all it adds is there
            steps.append(step)
    last: dict[fx.Node, Step] = {}
    for step in steps:
        for node in _reads(step):
            last[node] = step
    for node, step in last.items():
        step.last_uses = (*step.last_uses, node)
    return tuple(steps)


def _fusable(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _fuse(
    model: nn.Module,
    norms: Mapping[str, str],
    conv: fx.Node,
    shapes: Mapping[fx.Node, tuple[int, ...]],
    taken: Mapping[fx.Node, Step],
) -> Step:
    """A convolution with what follows it: a BatchNorm, a sum with a ReLU, a ReLU.

    A sum of two convolutions goes with the one that comes first.
    """
    step = Step(conv, conv, conv=str(conv.target))
    user = _only_user(conv)
    if user is not None and norms.get(str(user.target)) == step.conv:
        step.value, step.norm = user, str(user.target)
        user = _only_user(user)
    if user in taken:
        return step
    if user is not None and user.op == "call_function" and user.target in _SUMS:
        relu = _only_user(user)
        other = _other_summand(user, step.value, shapes)
        if other is not None and relu is not None and _is_relu(model, relu):
            step.value, step.other, step.relu = relu, other, True
    elif user is not None and _is_relu(model, user):
        step.value, step.relu = user, True
    return step


def _other_summand(
    node: fx.Node, summand: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]
) -> fx.Node | None:
    """What a sum adds to a value of the same shape; None when it is any other sum."""
    others = [x for x in node.args if x is not summand]
    if len(node.args) != 2 or node.kwargs or len(others) != 1:
        return None
    other = others[0]
    same = isinstance(other, fx.Node) and shapes.get(other) == shapes.get(summand)
    return other if same and isinstance(other, fx.Node) else None


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _is_module(model: nn.Module, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), kind)


def _is_relu(model: nn.Module, node: fx.Node) -> bool:
    method = node.op == "call_method" and node.target in ("relu", "relu_")
    function = node.op == "call_function" and node.target in _RELUS
    return method or function or _is_module(model, node, nn.ReLU)


def _reads(step: Step) -> list[fx.Node]:
    found = list(step.node.all_input_nodes)
    return found if step.other is None else [*found, step.other]


def _frontiers(steps: Sequence[Step], shapes: Mapping[fx.Node, tuple[int, ...]]) -> frozenset[int]:
    """Places of steps whose value, a tensor, alone connects what is before with what is behind."""
    found = set()
    alive: set[fx.Node] = set()
    for place, step in enumerate(steps[:-1]):
        alive.add(step.value)
        alive.difference_update(step.last_uses)
        if place and alive == {step.value} and step.value in shapes:
            found.add(place)
    return frozenset(found)


def _modules_of(steps: Sequence[Step]) -> tuple[tuple[str, ...], ...]:
    """Names of the modules, or free tensors, each step uses."""
    own = ("call_module", "get_attr")
    return tuple(
        tuple(str(node.target) for node in step.parts() if node.op in own) for step in steps
    )


def _run(step: Step, bound: Bound, values: Mapping[fx.Node, Any]) -> Any:
    node = step.node
    if step.conv:
        return _convolve(step, bound, values)
    args: Any = fx.map_arg(node.args, values.__getitem__)
    named: Any = fx.map_arg(node.kwargs, values.__getitem__)
    target: Any = node.target
    if node.op == "call_module":
        return bound.modules[target](*args, **named)
    if node.op == "call_function":
        return target(*args, **named)
    if node.op == "call_method":
        return getattr(args[0], _in_any_order(target, args))(*args[1:], **named)
    if node.op == "get_attr":
        return _attribute(bound.modules[""], target)
    return args[0]  # the output


def _in_any_order(method: str, args: Sequence[Any]) -> str:
    """A method that does the same, whatever order values have in memory."""
    sized = not any(isinstance(argument, torch.dtype) for argument in args[1:])
    return "reshape" if method == "view" and sized else method


def _attribute(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _convolve(step: Step, bound: Bound, values: Mapping[fx.Node, Any]) -> Tensor:
    layer: Any = bound.modules[step.conv]
    (source,) = step.node.args
    assert isinstance(source, fx.Node)
    x: Tensor = values[source]
    quantizer: InputQuantizer | None = getattr(layer, "input_quantizer", None)
    x = (x if quantizer is None else quantizer(x)).to(bound.dtype)
    weight, bias = bound.kernels[step.conv]
    form = (layer.padding, layer.stride, layer.dilation, layer.groups)
    if step.other is not None:
        return _rectified_sum(values[step.other].to(bound.dtype), x, weight, bias, *form)
    after = "relu" if step.relu else "none"
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *form, after, [], "")
    return result


def _rectified_sum(other: Tensor, x: Tensor, *layer: Any) -> Tensor:
    """A convolution's output with another tensor added, below 0 nothing.

    PyTorch 2.11 takes no summand whose strides fit both of oneDNN's layouts, such as one of a
    single place or channel ("could not create a memory"), but adds to a copy of it in place.
    """
    how: Any = ("add", 1.0, "relu", [], "")
    if other.is_contiguous() and other.is_contiguous(memory_format=torch.channels_last):
        result: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            other.clone(), x, *layer, *how
        )
    else:
        result = torch.ops.mkldnn._convolution_pointwise.binary(x, other, *layer, *how)
    return result


def _alike(actual: Any, expected: Any) -> bool:
    if not isinstance(actual, Tensor) or not isinstance(expected, Tensor):
        return False
    scale = max(float(expected.abs().max()), 1e-6)
    return float((actual - expected).abs().max()) <= _TOLERANCE * scale
