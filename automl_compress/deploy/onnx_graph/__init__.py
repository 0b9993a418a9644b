"""An exported float ONNX graph, rewritten so that ONNX Runtime runs it on integers, and fast.

In the order in which `deploy.onnx` applies them: `simplify`, then `blocks.pool_means` and `gates`
bring operations into forms that have integer kernels; `columns` folds narrow maps, as `folds`
says, and `blocks.fill_blocks` fills them up; `qdq` inserts the integers. The others say what these
work on.
"""
