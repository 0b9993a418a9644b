"""The original network a file was made from: given by the caller, or by its name in the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from automl_compress.errors import DeployError
from automl_compress.user_code import is_factory


def original_network(
    architecture: str | None, arguments: Mapping[str, Any], model: nn.Module | str | None
) -> nn.Module:
    """The architecture that a layout is rebuilt from.

    A shipped network is built by the name in the file. A factory of the user's own is run only
    when the caller names it: a file must not choose what code is run.

    Args:
        architecture: the network's name in the file; None where it has none.
        arguments: keyword arguments of the architecture.
        model: the original network with any weights, its factory's name, or None.

    Raises:
        DeployError: nobody says which network it is, or it is neither a network nor a name.
        WorkloadError: the factory fails.
    """
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, str | None):
        raise DeployError(
            "'model' must be a network, the name of its factory or None, but is of type "
            f"{type(model).__name__}; build the network first"
        )
    # Only files that name their network need the package that knows names.
    from automl_compress.workload import MODELS, build_model

    if model is None and architecture not in MODELS:
        why = f"only names '{architecture}'" if architecture else "names none"
        how = "model=NETWORK"
        if architecture and is_factory(architecture):
            how = f"model='{architecture}' to run that factory"
        raise DeployError(
            f"a file must be read into the network it was made from, but it {why}; pass {how}"
        )
    return build_model(model or str(architecture), arguments)


def known_network(architecture: str | None, arguments: Mapping[str, Any]) -> nn.Module | None:
    """The architecture of a shipped network, with random weights; None where it is not shipped.

    Raises:
        WorkloadError: the arguments do not fit.
    """
    if architecture is None:
        return None
    from automl_compress.workload import MODELS, build_model

    return build_model(architecture, arguments) if architecture in MODELS else None
