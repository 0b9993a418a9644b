"""Gates of a float ONNX graph, in the forms that ONNX Runtime is fast in between integers.

A gate is a sigmoid, or a piecewise linear one, and a product: with what the sigmoid reads (SiLU,
Hardswish) or with a larger map (squeeze-excitation, Hu et al. 2018). Measured with one thread on an
x86-64 processor with AVX-512 and VNNI, ONNX Runtime 1.32, maps of 230,000 and 610,000 values, from
integers to integers, in picoseconds a value:

- SiLU as exporters write it takes 670, for ONNX Runtime dequantizes once for the sigmoid and once
  for the product. Its integer kernels of both take 425, and round the sigmoid to 8 bits. Its float
  kernel of the whole takes 315, dequantizing and quantizing included, so SiLU stays a float.
- Hardswish takes 470 as floats, 285 on integers with a sum that saturates for its gate.
- A product of a map with one value for every channel takes 350 as floats, 195 on integers.

At 160x160, EfficientNet-B0 took 1.23 times as long as in float32 when all gates were floats, and
takes 0.85 times as long so; MobileNetV3-small 1.16 and 1.05 times. Every gate that is rounded costs
some exactness: with small networks of either kind (CIFAR-10, 2,000 images, half of them right),
agreement with PyTorch fell from 89 to 95 % by 0.8 to 2.1 points, and accuracy changed by -0.8 to
0.7. Files with 8-bit weights agree with the float networks on 93 and 92 %, those of ONNX Runtime's
own quantizer on 90 and 91 %.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

SILU: Final = "QuickGelu"
"""ONNX Runtime's own operator x * sigmoid(alpha * x); ONNX has it from opset 24 on as Swish, which
ONNX Runtime 1.32 takes apart again."""
RUNTIME_DOMAIN: Final = "com.microsoft"
_HARD_SWISH: Final = {"alpha": 1 / 6, "beta": 0.5}
_USUAL: Final = {"alpha": 0.2, "beta": 0.5}
"""Attributes of a HardSigmoid that states none."""


def write_gates(graph: ir.Graph) -> None:
    """Put ONNX Runtime's operator in place of every SiLU, a gate and a product of every Hardswish.

    Args:
        graph: float; changed in place.
    """
    for node in list(graph):
        if node.op_type == "HardSwish":
            _split(graph, node)
        elif node.op_type == "Sigmoid":
            _join(graph, node)


def _split(graph: ir.Graph, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    gate = _node("HardSigmoid", [source], f"{output.name}.gate", output, _HARD_SWISH)
    product = _node("Mul", [source, gate.outputs[0]], f"{output.name}.product", output)
    graph.insert_before(node, [gate, product])
    _replace(graph, node, product)


def _join(graph: ir.Graph, sigmoid: ir.Node) -> None:
    """Replace a sigmoid that nothing but a product with its own input reads."""
    source, gate = sigmoid.inputs[0], sigmoid.outputs[0]
    readers = [node for node, _ in gate.uses()]
    if source is None or len(readers) != 1 or gate.is_graph_output():
        return
    product = readers[0]
    if product.op_type != "Mul" or set(product.inputs) != {source, gate}:
        return
    name = f"{product.outputs[0].name}.silu"
    silu = _node(SILU, [source], name, product.outputs[0], {"alpha": 1.0}, RUNTIME_DOMAIN)
    graph.insert_before(product, silu)
    _replace(graph, product, silu)
    graph.remove(sigmoid, safe=True)
    graph.opset_imports[RUNTIME_DOMAIN] = 1


def _node(
    kind: str,
    inputs: list[ir.Value],
    name: str,
    like: ir.Value,
    attributes: dict[str, float] | None = None,
    domain: str = "",
) -> ir.Node:
    """A node whose output has the shape and type of another value."""
    output = ir.Value(name=name, shape=like.shape, type=like.type)
    return ir.node(kind, inputs, attributes, domain=domain, outputs=[output], name=name)


def _replace(graph: ir.Graph, node: ir.Node, by: ir.Node) -> None:
    """Let a node's readers read another node's output, which takes its name; remove the node."""
    before, after = node.outputs[0], by.outputs[0]
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    name, before.name = before.name, f"{before.name}.before"
    after.name = name
    graph.remove(node, safe=True)


def linear_part(node: ir.Node) -> tuple[float, float]:
    """Slope and offset of a HardSigmoid."""
    slope, offset = (
        node.attributes[name].as_float() if name in node.attributes else usual
        for name, usual in _USUAL.items()
    )
    return slope, offset
