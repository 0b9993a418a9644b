from __future__ import annotations

import math

import numpy as np
import pytest

from automl_compress.errors import StudyError
from automl_compress.evaluate import (
    Constraint,
    Evaluation,
    check_measured,
    check_met_by_least,
    check_objectives,
    check_quality,
    leave_out,
    loss_of,
    minimised_metrics,
    objective_values,
    references,
    useful_baseline,
    violations,
)
from automl_compress.space import Policy

POLICY = Policy({"weight_bits:a": 4})
BASELINE = {"error": 0.06, "size_bytes": 1000.0, "macs": 200.0}


def _measured(accuracy: float, size: float = 100.0) -> Evaluation:
    return Evaluation(POLICY, "e", {"accuracy": accuracy, "size_bytes": size})


@pytest.mark.parametrize(
    ("text", "metric", "limit", "relative"),
    [
        ("size_bytes <= 200 kB", "size_bytes", 200_000, False),
        ("size_bytes<=200kB", "size_bytes", 200_000, False),
        ("size_bytes <= 1.5 MB", "size_bytes", 1_500_000, False),
        ("size_bytes <= 2 GB", "size_bytes", 2e9, False),
        ("size_bytes <= 17 B", "size_bytes", 17, False),
        ("size_bytes <= 17", "size_bytes", 17, False),
        ("  macs <= 0.5x  ", "macs", 0.5, True),
        ("macs <= 3 M", "macs", 3e6, False),
        ("bitops <= 1.2e+9", "bitops", 1.2e9, False),
        ("bitops <= 1.2E9", "bitops", 1.2e9, False),
        ("params <= 5e3k", "params", 5e6, False),
        ("latency_ms <= 5 ms", "latency_ms", 5, False),
        ("latency_ms <= 0.5x", "latency_ms", 0.5, True),
        ("error <= 0.2", "error", 0.2, False),
        ("accuracy >= 0.9", "error", 0.1, False),
        ("accuracy >= 1", "error", 0.0, False),
    ],
)
def test_constraints_are_read(text: str, metric: str, limit: float, relative: bool) -> None:
    found = Constraint.parse(text)
    assert (found.metric, found.relative, found.text) == (metric, relative, text)
    assert found.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    "text",
    [
        "", "size_bytes", "size_bytes < 5", "size_bytes == 5", "size_bytes >= 5", "5 >= size_bytes",
        "accuracy <= 0.9", "accuracy >= 90", "accuracy >= 90%", "accuracy >= 0.9x", "error <= 5",
        "error <= 0.1x", "divergence <= 2", "divergence <= 0.5x",
        "size <= 5", "latency_ms <= 5 s", "size_bytes <= -5", "size_bytes <= nan",
        "size_bytes <= 1.2.3", "size_bytes <= .", "size_bytes <= 5 TB", "size_bytes <= 5 mb",
        "params <= 20 kB", "macs <= 500000B", "bitops <= 1 GB", "latency_ms <= 5 MB",
        "size_bytes <= 5 kB MB", "size_bytes <= 1e999", "__import__('os')",
    ],
)  # fmt: skip
def test_wrong_constraints_are_refused_with_their_text(text: str) -> None:
    with pytest.raises(StudyError) as caught:
        Constraint.parse(text)
    assert f"'{text}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["accuracy >= 98%", "accuracy >= 98", "error <= 0.1x"])
def test_shares_are_asked_for_by_an_example(text: str) -> None:
    with pytest.raises(StudyError, match=r"share in \[0, 1\], .*; write a share such as 0\.98$"):
        Constraint.parse(text)


def test_relative_limits_become_absolute_once() -> None:
    relative = Constraint.parse("size_bytes <= 0.25x")
    absolute = relative.absolute(BASELINE)
    assert (absolute.limit, absolute.relative, absolute.text) == (250, False, relative.text)
    assert absolute.absolute({}) is absolute


def test_violations_are_shares_of_the_limit() -> None:
    limits = [Constraint.parse("size_bytes <= 80"), Constraint.parse("accuracy >= 0.9")]
    evaluations = [_measured(0.9, 80), _measured(0.85, 100), Evaluation.failed(POLICY, "e", "x")]
    expected = [[0, 0], [0.25, 0.5], [math.inf, math.inf]]
    np.testing.assert_allclose(violations(evaluations, limits), expected, atol=1e-12)
    assert violations(evaluations, []).shape == (3, 0)
    assert violations([], limits).shape == (0, 2)


@pytest.mark.parametrize("right", range(0, 1000, 7))
def test_a_network_just_as_good_as_a_limit_meets_it(right: int) -> None:
    """1 - 0.98 is a little more than 0.02."""
    limits = [
        Constraint.parse(f"error <= {(1000 - right) / 1000}"),
        Constraint.parse(f"accuracy >= {right / 1000}"),
    ]
    assert violations([_measured(right / 1000)], limits).tolist() == [[0, 0]]
    assert (violations([_measured((right - 0.01) / 1000)], limits) > 0).all()


@pytest.mark.parametrize("whole", [100, 4_133_742_592, 999_999_999_937])
def test_a_cost_of_just_a_relative_limit_meets_it(whole: int) -> None:
    """0.57 times 100 is 56.99999999999999."""
    for per_cent in range(1, 101):
        whole_limit = whole // 100 * 100
        cost = whole_limit // 100 * per_cent
        baseline = {"error": 0.1, "size_bytes": float(whole_limit)}
        limit = Constraint.parse(f"size_bytes <= {per_cent / 100}x").absolute(baseline)
        assert violations([_measured(0.9, cost)], [limit]).tolist() == [[0]]
        assert violations([_measured(0.9, cost + 1)], [limit]) > 0
        check_met_by_least([limit], {"size_bytes": cost})
        with pytest.raises(StudyError, match="loosen it"):
            check_met_by_least([limit], {"size_bytes": cost + 1})
        assert not leave_out([limit], {"size_bytes": cost})
        assert leave_out([limit], {"size_bytes": cost + 1})


def test_costs_are_compared_as_they_are() -> None:
    limit = Constraint.parse("size_bytes <= 80")
    assert violations([_measured(0.9, 80 + 1e-10)], [limit]) > 0


def test_values_that_are_not_finite_count_as_failed() -> None:
    for broken in (_measured(math.nan), _measured(math.inf), _measured(0.9, math.nan)):
        assert not broken.ok
        assert np.isinf(objective_values([broken], ["error", "size_bytes"])).all()
        assert np.isinf(violations([broken], [Constraint.parse("accuracy >= 0.5")])).all()


def test_objective_values_are_minimised() -> None:
    evaluations = [_measured(0.75, 10), Evaluation.failed(POLICY, "e", "out\nof  memory")]
    values = objective_values(evaluations, ["size_bytes", "error"])
    assert values.tolist() == [[10, 0.25], [math.inf, math.inf]]
    assert objective_values([], ["error", "macs"]).shape == (0, 2)
    assert evaluations[1].reason == "out of memory"
    assert Evaluation.failed(POLICY, "e", " ").reason


def test_references() -> None:
    plain, useful = references(["error", "size_bytes"], BASELINE)
    np.testing.assert_allclose(plain.point, [1, 1000])
    np.testing.assert_allclose(useful.point, [0.16, 1000])
    _, useful = references(["macs", "error"], {**BASELINE, "error": 0.95})
    np.testing.assert_allclose(useful.point, [200, 1])


@pytest.mark.parametrize(("lost", "error"), [(0.02, 0.28), (-0.02, 0.32), (0.1, 0.2), (0.11, 0.3)])
def test_what_is_useful_counts_from_what_the_user_gave(lost: float, error: float) -> None:
    """Unless sparsity training alone lost more than is useful."""
    found = useful_baseline({**BASELINE, "error": 0.3}, lost)
    assert found == {**BASELINE, "error": pytest.approx(error)}


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["accuracy", "macs"], "1 - accuracy"),
        (["error"], "a cost"),
        (["macs", "size_bytes"], "'error'"),
        (["error", "macs", "error"], "must differ"),
        (["error", "flops"], "'flops'"),
        ([], "none"),
    ],
)
def test_wrong_objectives(names: list[str], part: str) -> None:
    with pytest.raises(StudyError, match=part):
        check_objectives(names)


def test_objectives_keep_their_order() -> None:
    assert check_objectives(iter(["macs", "error"])) == ("macs", "error")


def test_bounds_on_quality_speak_of_the_metric_networks_are_judged_by() -> None:
    bounds = [Constraint.parse("map50 >= 0.8"), Constraint.parse("macs <= 0.5x")]
    assert bounds[0].metric == "error"
    assert bounds[0].limit == pytest.approx(0.2)
    check_quality(bounds, "map50")
    with pytest.raises(StudyError, match=r"judged by accuracy, but 'map50 >= 0\.8' bounds"):
        check_quality(bounds, "accuracy")


def test_a_divergence_is_minimised_in_place_of_the_error() -> None:
    assert check_objectives(["divergence", "macs"]) == ("divergence", "macs")
    assert loss_of(["macs", "divergence"]) == "divergence"
    with pytest.raises(StudyError, match=r"'error' or 'divergence' and a cost.* leave one out"):
        check_objectives(["divergence", "error", "macs"])
    with pytest.raises(StudyError, match="add what is missing"):
        check_objectives(["divergence"])
    plain, useful = references(["divergence", "macs"], {**BASELINE, "divergence": 0.001})
    np.testing.assert_allclose(plain.point, [1, 200])
    np.testing.assert_allclose(useful.point, [0.501, 200])
    limit = Constraint.parse("divergence <= 0.2")
    near = Evaluation(POLICY, "e", {"accuracy": 0.1, "divergence": 0.1})
    far = Evaluation(POLICY, "e", {"accuracy": 0.9, "divergence": 0.3})
    np.testing.assert_allclose(violations([near, far], [limit]), [[0], [0.5]])
    assert objective_values([near], ["divergence"]).tolist() == [[0.1]]


def test_what_is_minimised_and_limited_must_be_measured() -> None:
    metrics = {"divergence": 0.0, "accuracy": 0.94, "size_bytes": 1000.0, "macs": 200.0}
    assert minimised_metrics(metrics) == pytest.approx({**BASELINE, "divergence": 0.0})
    measured = minimised_metrics({"map50": 0.94, "size_bytes": 1000.0, "macs": 200.0})
    assert measured == pytest.approx(BASELINE)
    check_measured({"objectives": ("error", "macs"), "constraints": ["error"]}, measured)
    with pytest.raises(StudyError, match=r"^'ladder' must .* but goes by 'divergence'") as caught:
        check_measured({"objectives": ("error", "macs"), "ladder": ["divergence"]}, measured)
    assert "\n" not in str(caught.value)


def test_limits_below_what_the_most_compressed_network_has_are_refused() -> None:
    texts = ("macs <= 82 k", "size_bytes <= 0.1x", "latency_ms <= 0.1 ms", "accuracy >= 0.99")
    limits = [Constraint.parse(text).absolute({"size_bytes": 3000.0}) for text in texts]
    check_met_by_least(limits, {"macs": 82_000.0, "size_bytes": 300.0, "latency_ms": 1.0})
    with pytest.raises(StudyError, match=r"'size_bytes <= 0.1x' allows 300 .* size_bytes of 301"):
        check_met_by_least(limits, {"macs": 82_000.0, "size_bytes": 301.0})
