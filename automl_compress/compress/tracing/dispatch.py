"""Modes that see every basic operation of PyTorch while they are entered.

PyTorch wraps those of its own so that no compiler looks into them, and imports its compiler, which
takes two seconds of every process, for that alone. Nothing is compiled here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Operation = Any
"""An `OpOverload`, or seldom an operator of higher order, to be called."""


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that runs basic operations in its own way."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def run(self, func: Operation, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """What an operation gives; modes do something before or after."""
        return func(*args, **named)

    def __torch_dispatch__(
        self,
        func: Operation,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.run(func, args, kwargs or {})


class ProductCounter(Mode):
    """Counts multiply-accumulates, as PyTorch's `FlopCounterMode` does, and those it leaves out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._macs = 0

    @property
    def macs(self) -> int:
        """Those of all operations that ran inside."""
        return self._macs

    def run(self, func: Operation, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Run an operation and count it, or those it is made of."""
        if not isinstance(func, OpOverload):
            return func(*args, **named)
        flops = flop_registry.get(func._overloadpacket)
        macs = _UNREGISTERED.get(func._schema.name)
        if flops is not None:
            output = func(*args, **named)
            self._macs += flops(*args, **named, out_val=output) // 2
            return output
        if macs is not None:
            output = func(*args, **named)
            self._macs += macs(args, output)
            return output
        with self:
            parts = func.decompose(*args, **named)
        return func(*args, **named) if parts is NotImplemented else parts


def _recurrent(args: tuple[Any, ...], _: Any) -> int:
    """Those of one layer in one direction: every step reads its input and its state."""
    x, of_input, of_state = args[:3]
    return int(x.numel() // x.shape[-1] * (of_input.numel() + of_state.numel()))


def _bilinear(args: tuple[Any, ...], _: Any) -> int:
    """Those of the weights, (outputs, first inputs, second inputs), with every pair of inputs."""
    first, weight = args[:2]
    return int(first.numel() // first.shape[-1] * weight.numel())


_UNREGISTERED: Final[dict[str, Callable[[tuple[Any, ...], Any], int]]] = {
    "aten::mv": lambda args, _: args[0].numel(),
    "aten::addmv": lambda args, _: args[1].numel(),
    "aten::dot": lambda args, _: args[0].numel(),
    "aten::vdot": lambda args, _: args[0].numel(),
    "aten::addbmm": lambda args, _: args[1].numel() * args[2].shape[-1],
    "aten::_trilinear": _bilinear,
    "aten::mkldnn_rnn_layer": _recurrent,
    "torchvision::deform_conv2d": lambda args, output: output.numel() * args[1][0].numel(),
}
"""By operation, its multiply-accumulates from arguments and result; PyTorch registers none."""
