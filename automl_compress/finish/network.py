"""A network of a study, in memory."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from automl_compress.compress.modules import own_copy, trainable
from automl_compress.deploy.state import load_state
from automl_compress.engine import Restored, restore_study
from automl_compress.finish.folder import recovered_file
from automl_compress.ledger import StudyResult
from automl_compress.report import pick_network
from automl_compress.space import Policy
from automl_compress.workload import Workload
from automl_compress.workload.torch_modes import usual_modes


@usual_modes()
def load_network(
    folder: str | Path | StudyResult,
    rule: str | Policy,
    *,
    recovered: bool = False,
    workload: Workload | None = None,
) -> nn.Module:
    """The network of a study that a rule picks, as the report's test images measured it.

    `compress` builds no more than a policy says; this network is repaired too, as `final_repair`
    says.

    Args:
        folder: a study's folder, or what the study returned.
        rule: see `report.pick_network`.
        recovered: whether its trained form is wanted, which `recover_networks` left in the folder.
        workload: given again, where the study was given a loaded one.

    Returns:
        A physically smaller network in evaluation mode, with trainable parameters of its own.

    Raises:
        InputError: the folder or the rule is wrong, it was not recovered, or the study's network or
            data have changed.
    """
    result = StudyResult(folder)
    policy = pick_network(result, rule).policy
    trained = recovered_file(result.folder, policy) if recovered else None
    built = network_of(restore_study(result.folder, workload), policy, trained)
    return trainable(own_copy(built))


def network_of(study: Restored, policy: Policy, trained: Path | None) -> nn.Module:
    """A policy's network, which may share tensors with the study's.

    Args:
        study: the policy's.
        policy: to build.
        trained: file of its trained form; the untrained one when None.

    Raises:
        InputError: the policy or the file does not fit the study's network.
    """
    return study.build(policy) if trained is None else load_state(trained, study.workload.model)
