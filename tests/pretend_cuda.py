"""A CUDA device that is only pretended, for machines that have none.

Tensors say that they are on a CUDA device, and are computed on the processor. As on a real one, an
operation that meets tensors of both raises, but where PyTorch lets it: 0-dimensional numbers of the
processor in pointwise operations, its indices of tensors on the device, and copies. Not pretended:
autocast, cuDNN, streams, and how fast or exact a real device is.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
_COPIES = {aten.copy_.default, aten._foreach_copy_.default, aten._to_copy.default}
_EMPTY = {aten.empty.memory_format, aten.empty_strided.default}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_SYNCHRONIZING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::item"}


class OnDevice(Tensor):
    """A tensor that says it is on a CUDA device; to PyTorch's C++ code it has no values."""

    held: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, held: Tensor, place: torch.device) -> OnDevice:
        """A tensor of `place` that is computed by `held` on the processor."""
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="meta"
        )
        made.held, made.place = held.detach(), place
        return made

    device = property(lambda self: self.place)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]
    is_meta = property(lambda _: False)  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """The values without their history."""
        return self.detach()

    @data.setter
    def data(self, other: OnDevice) -> None:
        self.held, self.place = other.held, other.place
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on the processor."""
        del types
        return _computed(operation, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with values of its own."""
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Files hold what the processor's tensor would be."""
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Shows the values."""
        return f"OnDevice({self.held}, {self.place})"

    def numpy(self, **_: Any) -> Any:
        """As on a real device."""
        raise TypeError("can't convert cuda device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self) -> Any:
        """The values, for which a real device is waited for."""
        return self.cpu().tolist()

    def pin_memory(self, *_: Any) -> Tensor:
        """As on a real device."""
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be")


class PretendCuda(TorchDispatchMode):
    """Inside, devices named `cuda:N` are there; see `pretended_cuda`."""

    def __init__(self) -> None:
        super().__init__()
        self.latest = torch.device("cuda", 0)
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on the processor, and count it."""
        del types
        return _computed(operation, args, kwargs or {}, self)


def _computed(operation: Any, args: Any, kwargs: Any, mode: PretendCuda | None = None) -> Any:
    tensors = list(_tensors((*args, *kwargs.values())))
    here = [x for x in tensors if isinstance(x, OnDevice)]
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    if not here and (wanted is None or wanted.type == "cpu"):
        return operation(*args, **kwargs)
    copies = operation in _COPIES
    place = here[0].place if here else None
    if wanted is not None and wanted.type == "meta" and not tensors and operation not in _EMPTY:
        place = wanted = mode.latest if mode else None  # PyTorch's C++ code asks for it
    if wanted is not None and wanted.type in ("cuda", "cpu"):
        place = wanted if wanted.type == "cuda" else None
    if here and not copies and wanted is None:
        _check_together(operation, args, tensors, here[0].place)
    if mode is not None and place is not None:
        mode.latest = place
    if mode is not None and (here or place is not None):
        _count(mode, operation, args, kwargs, tensors)
    if operation is aten._fused_sdp_choice.default:
        return 0  # the plain one
    if place is not None and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if wanted is not None and (wanted.type == "cuda" or here):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    dropped = ("pin_memory", "non_blocking") if "device" in kwargs else ()
    named = {name: _held(value) for name, value in kwargs.items() if name not in dropped}
    found = operation(*map(_held, args), **named)
    if place is None:
        return found
    owners = {id(_held(x)): x for x in tensors}
    return tree_map(lambda x: _shown(x, owners, place), found)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Those among an operation's arguments, which lists hold at most."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (part for part in value if isinstance(part, Tensor))


def _held(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_held, value))
    return value.held if isinstance(value, OnDevice) else value


def _shown(value: Any, owners: dict[int, Tensor], place: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return owners[id(value)] if id(value) in owners else OnDevice(value, place)


def _check_together(operation: Any, args: Any, tensors: list[Tensor], place: Any) -> None:
    """Raise, as a real device does, where an operation meets tensors of two devices."""
    others = [x for x in tensors if not isinstance(x, OnDevice)]
    apart = [x for x in tensors if isinstance(x, OnDevice) and x.place != place]
    name = operation._schema.name
    if name in _INDEXING and isinstance(args[0], OnDevice):
        indices = [x for x in args[1] if x is not None]
        others = [x for x in others if x.dim() and not any(x is index for index in indices)]
    pointwise = torch.Tag.pointwise in operation.tags or "foreach" in name
    if pointwise or name in ("aten::fill_", "aten::masked_fill", "aten::masked_fill_"):
        others = [x for x in others if x.dim()]
    if others or apart:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got some on {place} and others on "
            f"{apart[0].place if apart else 'cpu'} (in {name})"
        )


def _count(mode: PretendCuda, operation: Any, args: Any, kwargs: Any, tensors: Any) -> None:
    name = operation._schema.name
    mode.operations[name] += 1
    to_device = operation is aten._to_copy.default and kwargs.get("device") is not None
    waits = name in _SYNCHRONIZING or (to_device and not kwargs.get("non_blocking"))
    if name in _INDEXING:
        waits = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    if operation is aten.copy_.default:
        waits = len({isinstance(x, OnDevice) for x in tensors}) > 1
    if waits:
        mode.waits[name] += 1


@contextmanager
def pretended_cuda(devices: int = 1) -> Iterator[PretendCuda]:
    """Inside, there are so many CUDA devices.

    Yields:
        Counts the operations on them, and those that wait for them.
    """
    generators = tuple(torch.Generator() for _ in range(devices))

    def generator(device: Any) -> torch.Generator:
        return generators[device if isinstance(device, int) else torch.device(device).index or 0]

    stand_ins: dict[str, Any] = {
        "is_available": lambda: devices > 0,
        "device_count": lambda: devices,
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "default_generators": generators,
        "get_rng_state": lambda device="cuda": generator(device).get_state(),
        "set_rng_state": lambda state, device="cuda": generator(device).set_state(state),
        "is_bf16_supported": lambda **_: True,
        "get_device_name": lambda *_: "Pretended",
        "get_device_properties": lambda *_: mock.Mock(major=9, total_memory=2**33),
        "mem_get_info": lambda *_: (2**33, 2**33),
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "device": lambda *_: nullcontext(),
        "is_current_stream_capturing": lambda: False,
        "_lazy_init": lambda: None,
    }
    stream = {"return_value.is_capturing.return_value": False}
    optimizers = importlib.import_module("torch.optim.optimizer")
    foreach = [*optimizers._foreach_supported_types, OnDevice]
    with (
        mock.patch.multiple(torch.cuda, **stand_ins),
        mock.patch.object(torch.accelerator, "current_stream", mock.Mock(**stream)),
        mock.patch.object(optimizers, "_foreach_supported_types", foreach),
        mock.patch.object(torch, "inference_mode", _without_gradients),
        mock.patch.object(Tensor, "pin_memory", lambda x, *_: x),
        mock.patch.object(torch.nn.Module, "_apply", _moved_in_place(torch.nn.Module._apply)),
        PretendCuda() as mode,
    ):
        yield mode


def _without_gradients(mode: bool = True) -> Any:
    """What inference mode is here, for tensors of a class of their own do not know it."""
    return torch.no_grad() if mode else nullcontext()


def _moved_in_place(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Modules move their parameters in place, so that others who hold them see it."""
    swapping = torch.__future__.set_swap_module_params_on_conversion

    def moved(module: Any, function: Any, recurse: bool = True) -> Any:
        swapping(True)
        try:
            return apply(module, function, recurse)
        except RuntimeError:  # recurrent layers have weak references to theirs
            swapping(False)
            return apply(module, function, recurse)
        finally:
            swapping(False)

    return moved
