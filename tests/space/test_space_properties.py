from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl_compress.errors import SpaceError
from automl_compress.space import KINDS, Gene, Kind, Policy, SearchSpace

VALUES = {
    "channels": st.integers(1, 512),
    "weight_bits": st.integers(2, 8),
    "activation_bits": st.integers(4, 8),
    "kernel_sparsity": st.floats(0, 1, exclude_max=True),
}
TARGETS = st.text(min_size=1, max_size=6)


@st.composite
def genes(draw: st.DrawFn) -> Gene:
    kind: Kind = draw(st.sampled_from(KINDS))
    values = draw(st.sets(VALUES[kind], min_size=1, max_size=5))
    ordered = tuple(sorted(values, reverse=kind == "kernel_sparsity"))
    return Gene(f"{kind}:{draw(TARGETS)}", kind, ordered)


SPACES = st.lists(genes(), min_size=1, max_size=7, unique_by=lambda gene: gene.name).map(
    SearchSpace
)


@st.composite
def spaces_and_indices(draw: st.DrawFn) -> tuple[SearchSpace, np.ndarray]:
    space = draw(SPACES)
    return space, np.array([draw(st.integers(0, len(gene) - 1)) for gene in space])


CASES = spaces_and_indices()
Case = tuple[SearchSpace, np.ndarray]


@given(CASES)
def test_encode_undoes_decode_and_the_reverse(case: Case) -> None:
    space, indices = case
    policy = space.decode(indices)
    assert np.array_equal(space.encode(policy), indices)
    assert space.decode(space.encode(policy)) == policy
    assert space.encode(dict(policy)).dtype == np.int64


@given(CASES)
def test_the_unit_cube_holds_every_choice(case: Case) -> None:
    space, indices = case
    unit = space.to_unit(indices)
    assert ((unit > 0) & (unit < 1)).all()
    assert np.array_equal(space.from_unit(unit), indices)
    half = 0.499 / space.sizes
    for moved in (unit - half, unit + half):
        assert np.array_equal(space.from_unit(moved), indices)


@given(SPACES, st.data())
def test_any_numbers_become_indices(space: SearchSpace, data: st.DataObject) -> None:
    numbers = np.array(data.draw(st.lists(st.floats(), min_size=len(space), max_size=len(space))))
    for convert in (space.repair, space.from_unit):
        found = convert(numbers)
        assert found.dtype == np.int64
        assert ((found >= 0) & (found < space.sizes)).all()
    repaired = space.repair(numbers)
    assert np.array_equal(space.repair(repaired), repaired)
    space.decode(repaired)


@given(CASES)
def test_repair_leaves_allowed_indices_alone_and_takes_the_nearest(case: Case) -> None:
    space, indices = case
    assert np.array_equal(space.repair(indices), indices)
    assert np.array_equal(space.repair(indices + 0.4), indices)
    assert np.array_equal(space.repair(indices - 100), np.zeros(len(space)))


@given(CASES)
def test_json_and_pickle_round_trips(case: Case) -> None:
    space, indices = case
    policy = space.decode(indices)
    for read in (
        Policy.from_json(policy.to_json()),
        Policy.from_dict(json.loads(json.dumps(policy.to_dict()))),
        pickle.loads(pickle.dumps(policy)),
    ):
        assert (read, read.key, hash(read)) == (policy, policy.key, hash(policy))
        assert read.to_json() == policy.to_json()
    for again in (
        SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))),
        pickle.loads(pickle.dumps(space)),
    ):
        assert again == space
        assert hash(again) == hash(space)
        assert again.decode(indices) == policy


@given(CASES, st.data())
def test_keys_are_equal_exactly_when_genes_are(case: Case, data: st.DataObject) -> None:
    space, indices = case
    policy = space.decode(indices)
    shuffled = Policy(dict(data.draw(st.permutations(list(policy.items())))))
    assert (shuffled, shuffled.key, list(shuffled)) == (policy, policy.key, sorted(policy))
    other_indices = np.array([data.draw(st.integers(0, size - 1)) for size in space.sizes.tolist()])
    other = space.decode(other_indices)
    same = np.array_equal(indices, other_indices)
    assert (other == policy) == (other.key == policy.key) == same
    fewer = Policy(dict(list(policy.items())[1:]))
    assert fewer != policy
    assert fewer.key != policy.key


def test_equal_sparsities_have_one_key() -> None:
    policies = [Policy({"kernel_sparsity:a": v}) for v in (0, 0.0, -0.0, np.float64(0))]
    assert len({p.key for p in policies}) == len(set(policies)) == 1


def test_numbers_of_numpy_are_plain_numbers() -> None:
    drawn = Policy({"channels:a": np.int64(8), "kernel_sparsity:c": np.float32(0.5)})  # type: ignore[dict-item]
    assert drawn == Policy({"channels:a": 8, "kernel_sparsity:c": 0.5})
    assert drawn.to_json() == Policy.from_json(drawn.to_json()).to_json()
    with pytest.raises(SpaceError, match="must be an integer of at least 1"):
        Policy({"channels:a": np.bool_(True)})  # type: ignore[dict-item]
    with pytest.raises(SpaceError, match="a mapping of genes, but was given a list"):
        Policy([("channels:a", 8)])  # type: ignore[arg-type]


def test_keys_do_not_change_between_versions() -> None:
    policy = Policy({"weight_bits:b": 4, "channels:a": 8, "kernel_sparsity:c": 0.5})
    assert policy.to_json() == (
        '{"genes":{"channels:a":8,"kernel_sparsity:c":0.5,"weight_bits:b":4}}'
    )
    assert policy.key == "60b2b3ddce0b762094c85dbf422a6c76"


@given(CASES)
def test_neighbours_differ_in_one_gene_by_one_step_and_mutually(case: Case) -> None:
    space, indices = case
    policy = space.decode(indices)
    neighbours = space.neighbours(policy)
    assert len(set(neighbours)) == len(neighbours)
    inner = (indices > 0).sum() + (indices < space.sizes - 1).sum()
    assert len(neighbours) == inner
    for neighbour in neighbours:
        assert np.abs(space.encode(neighbour) - indices).sum() == 1
        assert policy in space.neighbours(neighbour)


@given(SPACES, st.integers(0, 2**32))
def test_samples_are_in_bounds_and_follow_the_generator(space: SearchSpace, seed: int) -> None:
    first, again = (space.sample(np.random.default_rng(seed)) for _ in range(2))
    assert ((first >= 0) & (first < space.sizes)).all()
    assert np.array_equal(first, again)


def test_samples_reach_everything() -> None:
    space = SearchSpace([
        Gene("weight_bits:a", "weight_bits", (2, 4, 8)), Gene("channels:a", "channels", (1, 2)),
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    assert len({space.decode(space.sample(rng)) for _ in range(200)}) == space.cardinality == 6


@given(SPACES)
def test_corners_and_size(space: SearchSpace) -> None:
    assert space.encode(space.smallest).sum() == 0
    assert np.array_equal(space.encode(space.largest), space.sizes - 1)
    assert space.cardinality == math.prod(int(s) for s in space.sizes)
    for gene in space:
        small, large = space.smallest[gene.name], space.largest[gene.name]
        assert (small >= large) if gene.kind == "kernel_sparsity" else (small <= large)


SPACE = SearchSpace([
    Gene("channels:a", "channels", (8, 16)), Gene("weight_bits:a", "weight_bits", (2, 4, 8)),
])  # fmt: skip


@pytest.mark.parametrize(
    ("indices", "part"),
    [
        ([0], "shape"), ([0, 0, 0], "shape"), ([[0, 0]], "shape"), ([0.0, 1.0], "float64"),
        ([True, False], "bool"), ([0, 3], "weight_bits:a"), ([-1, 0], "channels:a"),
        ([2, 3], "channels:a"),
    ],
)  # fmt: skip
def test_decode_refuses(indices: list[object], part: str) -> None:
    with pytest.raises(SpaceError, match=part):
        SPACE.decode(np.array(indices))


@pytest.mark.parametrize(
    ("genes", "part"),
    [
        ({"channels:a": 8}, "lacks 'weight_bits:a'"),
        ({"channels:a": 8, "weight_bits:a": 2, "weight_bits:b": 2}, "unknown 'weight_bits:b'"),
        ({"channels:a": 9, "weight_bits:a": 2}, r"one of \[8, 16\], but got 9"),
        ({"channels:a": True, "weight_bits:a": 2}, "but got True"),
    ],
)
def test_encode_refuses(genes: dict[str, int], part: str) -> None:
    with pytest.raises(SpaceError, match=part):
        SPACE.encode(genes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels:a", 0), ("channels:a", -4), ("channels:a", 4.0), ("channels:a", True),
        ("weight_bits:a", 1), ("weight_bits:a", 9), ("weight_bits:a", "4"),
        ("activation_bits:a", 3), ("activation_bits:a", 16), ("activation_bits:a", None),
        ("kernel_sparsity:a", 1.0), ("kernel_sparsity:a", -0.1), ("kernel_sparsity:a", math.nan),
        ("kernel_sparsity:a", math.inf), ("kernel_sparsity:a", "0.5"),
        ("bits:a", 4), ("channels", 4), ("channels:", 4), ("", 4),
    ],
)  # fmt: skip
def test_policies_and_genes_refuse_wrong_names_and_values(name: str, value: object) -> None:
    with pytest.raises(SpaceError) as caught:
        Policy({name: value})  # type: ignore[dict-item]
    assert f"'{name}'" in str(caught.value)
    with pytest.raises(SpaceError):
        Gene(name, name.partition(":")[0], (value,))  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [(), (4, 2), (2, 2), (2, 4, 3)])
def test_genes_refuse_disorder(values: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match="weight_bits:a"):
        Gene("weight_bits:a", "weight_bits", values)


def test_spaces_refuse_nothing_and_repeats() -> None:
    with pytest.raises(SpaceError, match="has none"):
        SearchSpace([])
    gene = Gene("channels:a", "channels", (1,))
    with pytest.raises(SpaceError, match="'channels:a' is repeated"):
        SearchSpace([gene, gene])


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"genes": [1]}', '{"policy": {}}', "NaN"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(SpaceError):
        Policy.from_json(text)
    with pytest.raises(SpaceError):
        SearchSpace.from_dict({"genes": {"channels:a": 4}})
