"""The original network a file was made from: given by the caller, or by its name in the file."""

from __future__ import annotations

from torch import nn

from automl_compress.deploy.layout import Layout
from automl_compress.errors import DeployError


def original_network(layout: Layout, model: nn.Module | str | None) -> nn.Module:
    """The architecture that a layout is rebuilt from.

    A shipped network is built by the name in the file. A factory of the user's own is run only
    when the caller names it: a file must not choose what code is run.

    Args:
        layout: what the file says.
        model: the original network with any weights, its factory's name, or None.

    Raises:
        DeployError: nobody says which network it is.
        WorkloadError: the factory fails.
    """
    if isinstance(model, nn.Module):
        return model
    # Only files that name their network need the package that knows names.
    from automl_compress.workload import MODELS, build_model

    if model is None and layout.architecture not in MODELS:
        named = layout.architecture
        why = f"only names the factory '{named}'" if named else "names none"
        how = f"model='{named}' to run that factory" if named else "model=NETWORK"
        raise DeployError(
            f"a file must be read into the network it was made from, but it {why}; pass {how}"
        )
    return build_model(model or str(layout.architecture), layout.arguments)
