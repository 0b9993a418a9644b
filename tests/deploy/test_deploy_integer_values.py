"""Which values of a graph become integers."""

from __future__ import annotations

import numpy as np
import pytest

from automl_compress.deploy.onnx_graph.low_bit_layers import HeldLayer, LowBitLayer

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

TWO_HEADS = """
<ir_version: 8, opset_import: ["" : 17]>
heads (float[n, 4, 8, 8] input) => (float[n, 8, 64] answers)
<float[4, 4, 1, 1] a, float[4, 4, 1, 1] b, float[4, 8, 1, 1] c, float[4, 8, 1, 1] d, int64[3] rows>
{
    one = Conv(input, a)
    other = Conv(input, b)
    maps = Concat <axis = 1> (one, other)
    logits = Conv(maps, c)
    edges = Conv(maps, d)
    heads = Concat <axis = 1> (logits, edges)
    answers = Reshape(heads, rows)
}
"""


def test_answers_side_by_side_do_not_share_a_grid() -> None:
    from automl_compress.deploy.onnx_graph.integer_values import IntegerValues

    graph = ir.from_proto(onnx.parser.parse_model(TWO_HEADS)).graph
    held = {}
    for node in graph:
        if node.op_type == "Conv":
            weights, scales = np.ones((4, 4, 1, 1), np.int8), np.ones(4, np.float32)
            layer = LowBitLayer(str(node.inputs[1].name), 8, weights, scales, None)
            held[node] = HeldLayer(layer, weights, scales, transposed=False)
    found = {value.name for value in IntegerValues(graph, held).roots}
    assert found == {"input", "one", "other", "maps", "logits", "edges"}
