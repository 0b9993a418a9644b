"""ONNX Runtime: the only file that loads it."""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import InputError

Array = NDArray[Any]

LIBRARIES: Final = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
"""What the extra `onnx` installs."""
INTEGER_LAYERS: Final = frozenset(
    ("QLinearConv", "ConvInteger", "QGemm", "MatMulInteger", "MatMulIntegerToFloat")
)
"""Kernels that multiply integers."""

EXACT: Final = ("session.x64quantprecision", "1")
"""Setting of a session that keeps products of 8-bit weights from saturating at 16 bits.

It turns to kernels that are exact on every x86-64 processor, and two to three times as slow where
the others are exact too: measured with AVX-512 VNNI, ONNX Runtime 1.32, ResNet-56 at batch 1. So it
is set where `saturates` only.
"""

_MULTIPLE: Final = 4
LEAST_OUTPUTS: Final = 16
"""Output channels that the fast integer kernel computes at once; fewer take as long."""
_FEWEST: Final = 4
"""Up to so many channels are as fast as sixteen, by another kernel."""


def block_channels(channels: int) -> int:
    """How many channels an integer convolution should have in place of so many.

    The fast kernel takes multiples of four inputs and at least sixteen outputs. Measured on an
    x86-64 processor with VNNI, ONNX Runtime 1.31: a 3x3 convolution of 8 channels at 32x32 takes
    29 microseconds and one of 16 takes 19; 22 channels at 16x16 take 16.5 and 32 take 13. One that
    reads 3 channels of 192x256 in steps of 2 takes 298, and 137 with a fourth channel of zeros.
    """
    if channels == 1:
        return 1
    if channels <= _FEWEST:
        return _FEWEST
    return max(LEAST_OUTPUTS, -(-channels // _MULTIPLE) * _MULTIPLE)


def require_onnx() -> None:
    """Check that the libraries of the extra `onnx` are installed.

    Raises:
        InputError: one is missing.
    """
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as reason:
            raise InputError(
                f"ONNX needs the library '{name}', but it is not installed; "
                "run `pip install automl-compress[onnx]`"
            ) from reason


def library_version() -> str:
    """The version of ONNX Runtime.

    Raises:
        InputError: it is not installed.
    """
    require_onnx()
    import onnxruntime

    return str(onnxruntime.__version__)


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's integer kernels overflow on this processor.

    Those for x86-64 processors without VNNI add pairs of products in 16 bits, which 8-bit weights
    exceed. The largest products there are tell; no list of processors is needed.

    Raises:
        InputError: see `require_onnx`.
    """
    require_onnx()
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    length = 64
    inputs = np.full((1, length), 255, np.uint8)
    weights = np.full((length, 16), 127, np.int8)
    given = helper.make_tensor_value_info("inputs", onnx.TensorProto.UINT8, list(inputs.shape))
    sums = helper.make_tensor_value_info("sums", onnx.TensorProto.INT32, [1, 16])
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["inputs", "weights"], ["sums"])],
        "largest_products",
        [given],
        [sums],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"inputs": inputs})[0]
    return bool((found != 255 * 127 * length).any())


class Runner:
    """A network in ONNX Runtime, on the processor.

    Args:
        model: the bytes of an ONNX file, or its path.
        threads: threads of one run.
        optimized: where ONNX Runtime writes the graph it really runs, or None.
        layouts: whether it may change the layout of maps inside. ONNX Runtime 1.32 then fuses a sum
            into a convolution even where the graph gives out what the convolution writes, and
            fails; so graphs that give out inner values go without.

    Raises:
        InputError: ONNX Runtime is not installed or cannot load the network.
    """

    def __init__(
        self,
        model: bytes | Path,
        threads: int = 1,
        optimized: Path | None = None,
        layouts: bool = True,
    ) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if saturates():
            options.add_session_config_entry(*EXACT)
        if not layouts:
            level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.graph_optimization_level = level
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as reason:
            what = "the network" if isinstance(model, bytes) else f"'{model}'"
            raise InputError(
                f"ONNX Runtime must be able to load {what}, but says: "
                f"{' '.join(str(reason).split())}; export it again"
            ) from reason
        self._input = self._session.get_inputs()[0]

    @property
    def input_shape(self) -> list[int | str | None]:
        """Sizes of the input; names or None where a size is free."""
        shape: list[int | str | None] = self._input.shape
        return shape

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Array, names: Sequence[str] | None = None) -> list[Array]:
        """Outputs of one run, those of the given names or all."""
        found: list[Array] = self._session.run(names, {self._input.name: inputs})
        return found


def kernels(model: bytes) -> Counter[str]:
    """How often each operator stands in the graph that ONNX Runtime runs after its fusions.

    Args:
        model: the bytes of an ONNX file.
    """
    require_onnx()
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        Runner(model, optimized=path)
        graph = onnx.load(path).graph
    return Counter(node.op_type for node in graph.node)


def batches(inputs: Array, size: int) -> list[Array]:
    """Slices of at most `size` along the first axis."""
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def outputs(runner: Runner, inputs: Array, size: int) -> list[Array]:
    """Every output for all inputs, run `size` at a time."""
    parts = [runner(part) for part in batches(inputs, size)]
    return [np.concatenate(same) for same in zip(*parts, strict=True)]
