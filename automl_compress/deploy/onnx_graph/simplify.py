"""Exported graphs made simpler: constants and BatchNorm folded, operations joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import onnx_ir as ir

_ROUNDS: Final = 2


def simplify(model: ir.Model) -> None:
    """What onnxscript's optimizer does by default, but for one rule.

    The rule that joins two slices looks at all nodes for every node. It took 60 % of the export of
    a transformer of convolutions and attention (timm's `coat_tiny`), and speeds up nothing here.

    Args:
        model: changed in place.
    """
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules.common import slice_split_rule

    rules: Any = rewriter._DEFAULT_REWRITE_RULES
    cheap = [rule for rule in rules if rule is not slice_split_rule]
    optimizer.inline(model)
    for _ in range(_ROUNDS):
        folded = optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        joined = rewriter.RewritePass(cheap)(model)
        optimizer.remove_unused_nodes(model)
        if not (folded.modified or joined.modified):
            break
    optimizer.optimize_ir(model, num_iterations=0, inline=False)
