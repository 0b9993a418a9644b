"""Modes that see every basic operation of PyTorch while they are entered.

PyTorch wraps those of its own so that no compiler looks into them, and imports its compiler, which
takes two seconds of every process, for that alone. Nothing is compiled here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    """Counts multiply-accumulates, as PyTorch's `FlopCounterMode` does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops = 0

    @property
    def macs(self) -> int:
        """Those of all operations that ran inside."""
        return self._flops // 2

    def run(self, func: Operation, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Run an operation and count it, or those it is made of."""
        if not isinstance(func, OpOverload):
            return func(*args, **named)
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:
                parts = func.decompose(*args, **named)
            return func(*args, **named) if parts is NotImplemented else parts
        output = func(*args, **named)
        self._flops += count(*args, **named, out_val=output)
        return output
