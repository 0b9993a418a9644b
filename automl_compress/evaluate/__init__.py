"""Estimators, and what they say of a policy.

The names here need no torch; `evaluate.network` holds the estimator that measures networks.
"""

from automl_compress.evaluate.evaluation import (
    ACCURACY_SE,
    COSTS,
    LATENCY,
    UNITS,
    Evaluation,
    Status,
    standard_error,
)
from automl_compress.evaluate.objectives import (
    USEFUL_LOSS,
    Constraint,
    check_objectives,
    objective_values,
    references,
    violations,
)

__all__ = [
    "ACCURACY_SE",
    "COSTS",
    "LATENCY",
    "UNITS",
    "USEFUL_LOSS",
    "Constraint",
    "Evaluation",
    "Status",
    "check_objectives",
    "objective_values",
    "references",
    "standard_error",
    "violations",
]
