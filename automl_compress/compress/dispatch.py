"""Modes that see every basic operation of PyTorch while they are entered.

PyTorch wraps those of its own so that no compiler looks into them, and imports its compiler, which
takes two seconds of every process, for that alone. Nothing is compiled here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode whose `__torch_dispatch__` is called as it is written."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class ProductCounter(Mode):
    """Counts multiply-accumulates, as PyTorch's `FlopCounterMode` does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops = 0

    @property
    def macs(self) -> int:
        """Those of all operations that ran inside."""
        return self._flops // 2

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
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
