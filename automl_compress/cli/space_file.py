"""Writing a derived search space as a file for editing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from automl_compress.compress import Coverage, DerivedSpace, Structure, space_of_structure, trace
from automl_compress.errors import WorkloadError
from automl_compress.ledger import write_text
from automl_compress.space import SpaceRules
from automl_compress.workload import MODELS, build_model, check_model_name


def write_space_file(model: str, path: Path, input_shape: tuple[int, ...] | None) -> Coverage:
    """Derive the space of a network by the default rules and write the rules.

    Args:
        model: a shipped name or `package.module:factory`.
        path: the file to write.
        input_shape: of an example, without the batch axis; None takes a shipped network's own.

    Raises:
        InputError: the model cannot be built or followed, or its input shape is not known.
    """
    network, example = network_and_example(model, input_shape)
    working, structure = trace(network, example)
    rules = SpaceRules()
    derived = space_of_structure(working, structure, rules)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _text(model, tuple(example.shape[1:]), rules, derived, structure))
    return derived.coverage


def network_and_example(
    model: str, input_shape: tuple[int, ...] | None
) -> tuple[nn.Module, Tensor]:
    """A network by its name, with any weights, and (1, ...) random input.

    Args:
        model: a shipped name or `package.module:factory`.
        input_shape: of an example, without the batch axis; None takes a shipped network's own.

    Raises:
        InputError: the model cannot be built, or its input shape is not known.
    """
    check_model_name(model)
    shape = input_shape or (MODELS[model].input_shape if model in MODELS else None)
    if shape is None:
        raise WorkloadError(
            f"--input-shape must be given for a network that is not shipped, such as '{model}'; "
            "add --input-shape 3,224,224"
        )
    generator = torch.Generator().manual_seed(0)
    return build_model(model, {}), torch.randn(1, *shape, generator=generator)


def _text(
    model: str,
    shape: tuple[int, ...],
    rules: SpaceRules,
    derived: DerivedSpace,
    structure: Structure,
) -> str:
    """The file: rules to edit, and what they resolve to as comments."""
    return "\n".join([*_rules_text(model, shape, rules, derived), *_parts_text(structure)]) + "\n"


def _rules_text(
    model: str, shape: tuple[int, ...], rules: SpaceRules, derived: DerivedSpace
) -> list[str]:
    coverage = derived.coverage
    return [
        f"# Search space of {model}, input {'x'.join(map(str, shape))}.",
        f"# {len(derived.space)} genes; {coverage.parameters_share:.0%} of the weights and "
        f"{coverage.macs_share:.0%} of the multiply-accumulates can be changed.",
        f'model: "{model}"',
        "",
        "# Shares of a coupled group's channels that may be kept, rounded to multiples.",
        "channels:",
        f"  ratios: {_list(rules.channels.ratios)}",
        f"  round_to: {rules.channels.round_to}",
        "",
        "# Bits of weights (2..8) and of layers' inputs (4..8); empty leaves float32.",
        f"weight_bits: {_list(rules.weight_bits)}",
        f"activation_bits: {_list(rules.activation_bits)}",
        "",
        "# Shares of a convolution's 2-D kernels that may be removed, such as [0, 0.25, 0.5].",
        f"kernel_sparsity: {_list(rules.kernel_sparsity)}",
        "",
        "# Other choices for some layers; the last match wins. For example:",
        "# overrides:",
        '#   - match: "layer3.*"',
        "#     weight_bits: [2, 3, 4]",
        "overrides: []",
        "",
        "# Layers that are left as they are.",
        "protect: []",
        "",
    ]


def _parts_text(structure: Structure) -> list[str]:
    """Names that patterns may match, as comments."""
    lines = ["# Channel groups: name, channels, layers that write them."]
    layers = {layer.name for layer in structure.layers}
    for group in structure.groups:
        writers = ", ".join(name for name in group.writers if name in layers)
        note = f"  (protected: {group.protected})" if group.protected else ""
        lines.append(f"#   {group.name}: {group.channels}: {writers}{note}")
    lines.append("# Layers: name, inputs -> outputs, kernel.")
    lines += [
        f"#   {layer.name}: {layer.in_channels} -> {layer.out_channels}, {layer.kernel}"
        for layer in structure.layers
    ]
    return lines


def _list(values: tuple[float, ...]) -> str:
    return f"[{', '.join(map(str, values))}]"
