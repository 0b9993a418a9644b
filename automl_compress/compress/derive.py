"""From a network and rules to a search space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from automl_compress.compress.quantize import can_quantize
from automl_compress.compress.structure import ChannelGroup, LayerShape, Structure
from automl_compress.compress.tracing.trace import TIME_LIMIT, trace
from automl_compress.errors import TraceError
from automl_compress.space import Gene, SearchSpace, SpaceRules


@dataclass(frozen=True)
class Coverage:
    """How much of a network a space can change.

    Args:
        groups: channel groups that can be cut.
        layers: layers that can be quantized or thinned.
        parameters_share: share of all parameters that lie where a gene changes something, in
            [0, 1].
        macs_share: share of all multiply-accumulates likewise.
        skipped: name and reason of every group, layer and other weight tensor without a gene.
        idle: kinds of genes kept at their least compressed value, for a study rewards no other.
    """

    groups: int
    layers: int
    parameters_share: float
    macs_share: float
    skipped: tuple[tuple[str, str], ...] = field(default=())
    idle: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "groups": self.groups,
            "layers": self.layers,
            "parameters_share": self.parameters_share,
            "macs_share": self.macs_share,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "idle": list(self.idle),
        }


@dataclass(frozen=True)
class DerivedSpace:
    """A search space, and what of the network it covers."""

    space: SearchSpace
    coverage: Coverage


def derive_space(
    model: nn.Module,
    example_input: Tensor,
    rules: SpaceRules | None = None,
    time_limit: float = TIME_LIMIT,
) -> DerivedSpace:
    """Derive the search space of a network.

    Args:
        model: the trained network; not changed.
        example_input: (1, channels, height, width), or whatever the network takes.
        rules: ratios, bits, overrides and protection; the defaults when not given.
        time_limit: seconds that following the network may take.

    Raises:
        TraceError: the network cannot be followed, or nothing in it can be compressed.
        SpaceError: the rules do not fit the network.
    """
    working, structure = trace(model, example_input, time_limit)
    return space_of_structure(working, structure, rules or SpaceRules())


def space_of_structure(model: nn.Module, structure: Structure, rules: SpaceRules) -> DerivedSpace:
    """Resolve rules against a traced network; genes come in the network's order.

    Args:
        model: what `trace` gave.
        structure: what it gave beside it.
        rules: what is resolved.

    Raises:
        TraceError: no layer runs, or nothing can be compressed.
        SpaceError: a pattern of the rules matches nothing.
    """
    if not structure.layers:
        raise TraceError(
            "a network must have something to compress, but runs no convolution or linear layer "
            "that is a module; give it as it was before it was exported or rewritten"
        )
    rules.check_patterns([layer.name for layer in structure.layers])
    skipped: list[tuple[str, str]] = []
    genes: list[Gene] = []
    for layer in structure.layers:
        for group in structure.groups:
            if group.first_writer == layer.name:
                genes += _channel_gene(group, structure, rules, skipped)
        genes += _bit_genes(model, layer, rules, skipped)
        genes += _kernel_gene(layer, rules, skipped)
    if not genes:
        first = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise TraceError(
            f"a network must have something to compress, but every part is skipped ({first}); "
            "unprotect a layer or add choices"
        )
    return DerivedSpace(SearchSpace(genes), _coverage(genes, structure, skipped))


def _channel_gene(
    group: ChannelGroup, structure: Structure, rules: SpaceRules, skipped: list[tuple[str, str]]
) -> Iterator[Gene]:
    layers = {layer.name for layer in structure.layers}
    writers = [name for name in group.writers if name in layers]
    rule = rules.for_names(writers).channels
    counts = rule.counts(group.channels) if rule is not None else ()
    name = f"channels:{group.name}"
    if group.protected:
        skipped.append((name, group.protected))
    elif rules.is_protected(writers):
        skipped.append((name, "protected by the rules"))
    elif not counts or counts == (group.channels,):
        skipped.append((name, "the rules offer no other channel count"))
    else:
        yield Gene(name, "channels", counts)


def _bit_genes(
    model: nn.Module, layer: LayerShape, rules: SpaceRules, skipped: list[tuple[str, str]]
) -> Iterator[Gene]:
    own = rules.for_names([layer.name])
    if rules.is_protected([layer.name]):
        skipped.append((f"weight_bits:{layer.name}", "protected by the rules"))
        return
    if not can_quantize(model.get_submodule(layer.name)):
        skipped.append((f"weight_bits:{layer.name}", f"a {layer.kind} cannot be quantized"))
        return
    if own.weight_bits:
        yield Gene(f"weight_bits:{layer.name}", "weight_bits", own.weight_bits)
    if own.activation_bits:
        yield Gene(f"activation_bits:{layer.name}", "activation_bits", own.activation_bits)


def _kernel_gene(
    layer: LayerShape, rules: SpaceRules, skipped: list[tuple[str, str]]
) -> Iterator[Gene]:
    shares = sorted(set(rules.for_names([layer.name]).kernel_sparsity), reverse=True)
    name = f"kernel_sparsity:{layer.name}"
    if not shares or shares == [0]:
        return
    if rules.is_protected([layer.name]):
        skipped.append((name, "protected by the rules"))
    elif not layer.convolution:
        skipped.append((name, f"a {layer.kind} has no kernels that can be removed"))
    elif layer.depthwise:
        skipped.append((name, "each of its kernels is a whole channel"))
    else:
        yield Gene(name, "kernel_sparsity", tuple(shares))


def _coverage(genes: list[Gene], structure: Structure, skipped: list[tuple[str, str]]) -> Coverage:
    cut = {gene.target for gene in genes if gene.kind == "channels"}
    layers = {gene.target for gene in genes if gene.kind != "channels"}
    groups = [group for group in structure.groups if group.name in cut]
    touched = layers | {member.module for group in groups for member in group.members}
    touched |= {product.name for group in groups for product in group.products}
    other = "neither a layer that runs nor a normalization"
    parameters = {layer.name: _weights(layer) for layer in structure.layers}
    macs = {layer.name: _weights(layer) * layer.positions for layer in structure.layers}
    macs[""] = structure.other_macs
    macs |= {part.name: part.channels * part.macs_per_channel for part in structure.products}
    for layer in structure.layers:
        parameters[layer.name] += layer.out_channels * layer.bias
    for part in structure.stored:
        own = part.channels * part.params_per_channel
        parameters[part.name] = parameters.get(part.name, 0) + own
        if part.params_per_channel > 1 and part.name not in touched:
            skipped.append((part.name, other))
    return Coverage(
        groups=len(cut),
        layers=len(layers),
        parameters_share=_share(parameters, touched),
        macs_share=_share(macs, touched),
        skipped=tuple(skipped),
    )


def _share(counts: dict[str, int], touched: set[str]) -> float:
    total = sum(counts.values())
    return sum(count for name, count in counts.items() if name in touched) / total if total else 0.0


def _weights(layer: LayerShape) -> int:
    return layer.out_channels * (layer.in_channels // layer.groups) * layer.kernel
