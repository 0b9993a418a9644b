"""Estimators, and what they say of a policy.

The names here need no torch; `evaluate.network` holds the estimator that measures networks.
"""

from automl_compress.evaluate.evaluation import (
    COSTS,
    LATENCY,
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
    check_objectives,
    check_quality,
    objective_values,
    references,
    violations,
)

__all__ = [
    "COSTS",
    "LATENCY",
    "QUALITIES",
    "UNITS",
    "USEFUL_LOSS",
    "Constraint",
    "Evaluation",
    "Status",
    "check_objectives",
    "check_quality",
    "error_name",
    "objective_values",
    "quality_name",
    "quality_of",
    "references",
    "standard_error",
    "violations",
]
