"""Multi-head attention made of layers, so that its channels can be followed, cut and quantized.

`nn.MultiheadAttention` keeps its projections in one parameter and computes with them in one
function; networks that write attention out divide one layer's output by numbers in their code.
The modules here compute the same from four linear layers and two products. Heads stay: each keeps
the same channels, of query and key together, and of value and projection together. Products keep
the scale of the original width, so a cut network gives what the original gives without the
channels that go.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress.modules import runs_its_class


class HeadProduct(nn.Module):
    """A product of two tensors that are divided into heads.

    Args:
        width: channels of every head.
    """

    read: Tensor | None = None
    """(n,) channels that are read, for trial cuts; None for all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class HeadScores(HeadProduct):
    """Products of queries and keys over the channels of a head.

    Args:
        width: channels of every head.
        scale: factor of the products; it stays when channels are cut.
        cosine: whether queries and keys get length 1 first.
    """

    def __init__(self, width: int, scale: float, cosine: bool = False) -> None:
        super().__init__(width)
        self.scale = scale
        self.cosine = cosine

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Map (n, heads, targets, width), (n, heads, sources, width) to (n, heads, t, s)."""
        if self.read is not None:
            query, key = query[..., self.read], key[..., self.read]
        if self.cosine:
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        return (query * self.scale) @ key.transpose(-2, -1)


class HeadMix(HeadProduct):
    """Sums of values, each channel of a head alone, weighted by how much a target reads them."""

    def forward(self, weights: Tensor, value: Tensor) -> Tensor:
        """Map (n, heads, targets, sources), (n, heads, sources, width) to (n, heads, t, width)."""
        return weights @ value


class HeadLayers(nn.Module):
    """What all attention made of layers has; others say how it is called.

    It has no methods, for whose names others may have attributes.

    Args:
        layers: of queries, keys and values.
        heads: how many heads there are.
        scale: factor of the products of queries and keys.
        cosine: as of `HeadScores`.
    """

    def __init__(
        self, layers: list[nn.Linear], heads: int, scale: float, cosine: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value = layers
        self.scores = HeadScores(layers[0].out_features // heads, scale, cosine)
        self.mix = HeadMix(layers[2].out_features // heads)


def in_heads(layer: nn.Module, x: Tensor, heads: int) -> Tensor:
    """What a layer makes of (n, positions, channels): (n, heads, positions, channels of a head)."""
    y = rows(layer, x)
    return y.reshape(*y.shape[:2], heads, -1).transpose(1, 2)


def joined(x: Tensor, turned: bool = False) -> Tensor:
    """Map (n, heads, positions, channels of a head) to (n, positions, channels).

    They come head by head, or `turned` each channel with those of all heads.
    """
    return x.permute((0, 2, 3, 1) if turned else (0, 2, 1, 3)).flatten(2)


class MultiheadAttention(HeadLayers):
    """What `nn.MultiheadAttention` computes in evaluation mode, from layers.

    Args:
        original: see `can_be_layers`; its values are copied.
    """

    in_proj_bias = None
    """Tells PyTorch's encoders that their fused path is none for this module."""

    def __init__(self, original: nn.MultiheadAttention) -> None:
        assert original.in_proj_weight is not None
        layers = divided(original.in_proj_weight, original.in_proj_bias, 3)
        super().__init__(layers, original.num_heads, original.head_dim**-0.5)
        self.embed_dim = original.embed_dim
        self.batch_first = original.batch_first
        self._qkv_same_embed_dim = True
        (self.out_proj,) = divided(original.out_proj.weight, original.out_proj.bias, 1)

    @property
    def in_proj_weight(self) -> Tensor:
        """Weights of the three layers in one, as the original has them, for others' code."""
        return torch.cat([self.query.weight, self.key.weight, self.value.weight])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results of `nn.MultiheadAttention`; `is_causal` is but a hint there."""
        del is_causal
        alone = query.dim() == 2
        first = self.batch_first or alone
        inputs = [x.unsqueeze(0) if alone else x for x in (query, key, value)]
        q, k, v = (
            in_heads(layer, x if first else x.transpose(0, 1), self.num_heads)
            for layer, x in zip((self.query, self.key, self.value), inputs, strict=True)
        )
        scores = self.scores(q, k)
        for mask in (attn_mask, key_padding_mask):
            if mask is not None:
                scores = scores + _as_bias(mask, scores, mask is key_padding_mask)
        weights = scores.softmax(-1)
        output = rows(self.out_proj, joined(self.mix(weights, v)))
        output = output.squeeze(0) if alone else output if first else output.transpose(0, 1)
        if not need_weights:
            return output, None
        told = weights.mean(1) if average_attn_weights else weights
        return output, told.squeeze(0) if alone else told


def can_be_layers(module: nn.Module) -> bool:
    """Whether a module is an attention that `MultiheadAttention` computes as well."""
    return (
        type(module) is nn.MultiheadAttention
        and module._parameters.get("in_proj_weight") is not None
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
        and runs_its_class(module)
    )


def divided(weight: Tensor, bias: Tensor | None, parts: int) -> list[nn.Linear]:
    """Frozen layers of equal parts of a weight's rows."""
    biases: Any = [None] * parts if bias is None else bias.detach().chunk(parts)
    return [_linear(w, b) for w, b in zip(weight.detach().chunk(parts), biases, strict=True)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen layer of given values."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    # Own, aligned memory: products of views may differ in the last bit.
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def rows(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer on (n, positions, channels), as one product of matrices.

    Otherwise who needs gradients decides how PyTorch multiplies, to the last bit.
    """
    found: Tensor = layer(x.reshape(-1, x.shape[-1]))
    return found.reshape(*x.shape[:2], -1)


def _as_bias(mask: Tensor, scores: Tensor, padding: bool) -> Tensor:
    """A mask as something to add to scores (n, heads, targets, sources).

    Args:
        mask: booleans that are true where nothing is read, or floats to add; (sources,) or
            (n, sources) when `padding`, else (targets, sources) or (n * heads, targets, sources).
        scores: what it is added to.
        padding: whether it is one of sources alone.
    """
    if mask.dtype == torch.bool:
        mask = unread(mask, scores)
    if padding:
        return mask.reshape(-1, 1, 1, mask.shape[-1])
    return mask.reshape(scores.shape) if mask.dim() == 3 else mask


def unread(mask: Tensor, scores: Tensor) -> Tensor:
    """What to add to scores so that nothing is read where a mask is true."""
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))
