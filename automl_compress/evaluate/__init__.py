"""Estimators, and what they say of a policy.

The names here need no torch; `evaluate.network` holds the estimator that measures networks.
"""

from automl_compress.evaluate.evaluation import (
    COSTS,
    DIVERGENCE,
    LATENCY,
    LOSSES,
    QUALITIES,
    UNITS,
    Evaluation,
    Status,
    error_name,
    quality_name,
    quality_of,
    standard_error,
)
from automl_compress.evaluate.objectives import (
    USEFUL_LOSS,
    Constraint,
    beyond,
    check_measured,
    check_objectives,
    check_quality,
    leave_out,
    loss_of,
    minimised_metrics,
    objective_values,
    references,
    references_around,
    useful_loss,
    violations,
)

__all__ = [
    "COSTS",
    "DIVERGENCE",
    "LATENCY",
    "LOSSES",
    "QUALITIES",
    "UNITS",
    "USEFUL_LOSS",
    "Constraint",
    "Evaluation",
    "Status",
    "beyond",
    "check_measured",
    "check_objectives",
    "check_quality",
    "error_name",
    "leave_out",
    "loss_of",
    "minimised_metrics",
    "objective_values",
    "quality_name",
    "quality_of",
    "references",
    "references_around",
    "standard_error",
    "useful_loss",
    "violations",
]
