"""Genes that no objective or constraint rewards stay at their least compressed value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from automl_compress.engine import Study
from automl_compress.engine.idle import idle_kinds, without_idle_choices
from automl_compress.errors import StudyError
from automl_compress.report import write_report
from automl_compress.space import Gene, Policy, SearchSpace

SPACE = SearchSpace(
    [
        Gene("channels:a", "channels", (4, 8)),
        Gene("weight_bits:a", "weight_bits", (2, 4, 8)),
        Gene("kernel_sparsity:a", "kernel_sparsity", (0.5, 0.0)),
        Gene("weight_bits:b", "weight_bits", (8,)),
    ]
)


def _cost(policy: Policy) -> dict[str, float]:
    kept = policy["channels:a"] * (1 - policy["kernel_sparsity:a"])
    return {"macs": 10 * policy["channels:a"], "size_bytes": kept * policy["weight_bits:a"]}


@pytest.mark.parametrize(
    ("metrics", "idle"),
    [
        (("macs",), ("weight_bits", "kernel_sparsity")),
        (("size_bytes",), ()),
        (("macs", "size_bytes"), ()),
        ((), ()),
    ],
)
def test_a_kind_is_idle_where_no_stated_cost_changes(
    metrics: tuple[str, ...], idle: tuple[str, ...]
) -> None:
    assert idle_kinds(SPACE, _cost, metrics) == idle


def test_idle_genes_keep_their_least_compressed_value() -> None:
    space, idle = without_idle_choices(SPACE, _cost, ("macs",))
    assert [gene.values for gene in space] == [(4, 8), (8,), (0.0,), (8,)]
    assert idle == ("weight_bits", "kernel_sparsity")


def test_a_study_that_rewards_nothing_its_space_can_change_is_refused() -> None:
    bits = SearchSpace([gene for gene in SPACE if gene.kind == "weight_bits"])

    def cost(policy: Policy) -> dict[str, float]:
        return {"macs": 1.0, "size_bytes": float(policy["weight_bits:a"])}

    with pytest.raises(StudyError, match="weight_bits change none of macs; add size_bytes"):
        without_idle_choices(bits, cost, ("macs",))


@pytest.mark.parametrize(
    ("stated", "choices"),
    [
        ({"objectives": ["error", "macs"]}, {1}),
        ({"objectives": ["error", "macs"], "constraints": ["size_bytes <= 0.5x"]}, {6}),
        ({"objectives": ["error", "bitops"]}, {6}),
    ],
)
def test_a_study_searches_bits_only_where_they_are_rewarded(
    stated: dict[str, Any], choices: set[int]
) -> None:
    study = Study(
        study="tiny",
        workload={"model": "digits_cnn", "train": {"epochs": 1}},
        estimate={"images": 50, "calibration_images": 16},
        strategies=["nsga2"],
        seeds=1,
        budget={"evaluations": 3},
        engine={"kind": "serial"},
        **stated,
    )
    prepared = study._prepare()
    sizes = {len(gene) for gene in prepared.problem.space if gene.kind == "weight_bits"}
    assert sizes == choices
    assert prepared.manifest.coverage["idle"] == (["weight_bits"] if choices == {1} else [])


def test_constraints_that_nothing_in_the_space_meets_are_refused() -> None:
    """`macs <= 50` is a slip for `50 M`."""
    settings: dict[str, Any] = {
        "study": "tiny",
        "workload": {"model": "digits_cnn", "train": {"epochs": 1}},
        "estimate": {"images": 50, "calibration_images": 16},
        "strategies": ["nsga2"],
        "budget": {"evaluations": 3},
        "engine": {"kind": "serial"},
    }
    with pytest.raises(StudyError, match="'macs <= 50' allows 50 and the most compressed one"):
        Study(**settings, constraints=["macs <= 50"])._prepare()


@pytest.mark.usefixtures("blank_figures")
def test_strategies_search_what_is_left() -> None:
    strategies = ["hybrid", "ddpg", "qmix", "knapsack", "local", "optuna-tpe", "nsga2-surrogate"]
    result = Study(
        study="tiny",
        workload={"model": "digits_cnn", "train": {"epochs": 1}},
        estimate={"images": 50, "calibration_images": 16, "repair": "recalibrate"},
        objectives=["error", "macs"],
        strategies=strategies,
        seeds=1,
        budget={"evaluations": 12},
        engine={"kind": "serial"},
        finalists=1,
    ).run()
    frame = result.to_dataframe()
    for strategy in strategies:
        own = frame[frame["strategy"] == strategy]
        policies = [json.loads(text)["genes"] for text in own["policy"]]
        assert {p[name] for p in policies for name in p if name.startswith("weight_bits")} == {8}
        assert own["macs"].nunique() > 1
    assert "No objective and no constraint rewards fewer weight_bits" in (
        write_report(result.folder).read_text()
    )
