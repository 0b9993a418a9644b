"""PyTorch's modes as networks need them here, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import torch

_AUTOCASTING: Final = ("cpu", "cuda")


@contextmanager
def usual_modes() -> Iterator[None]:
    """Inside, PyTorch is as it starts: gradients are recorded, tensors are float32 on the CPU.

    What begins a work on networks is wrapped in it, as a decorator: it is then the same in a
    caller's `torch.inference_mode`, `torch.no_grad`, `torch.autocast` or `torch.device`, and under
    another default type or device. Afterwards all is as the caller left it.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))  # which records gradients, too
        for device in _AUTOCASTING:
            modes.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":  # else it costs time in every call
            modes.enter_context(torch.device("cpu"))
        modes.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield
