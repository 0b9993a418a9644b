from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl_compress.errors import SpaceError
from automl_compress.space import ChannelRule, Override, SpaceRules, load_rules


@given(
    st.lists(st.floats(0.01, 1), max_size=6), st.integers(1, 16), st.integers(1, 300),
    st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_counts_are_multiples_within_the_group(
    ratios: list[float], round_to: int, channels: int, granularity: int
) -> None:
    counts = ChannelRule(tuple(ratios), round_to).counts(channels, granularity)
    assert list(counts) == sorted(set(counts))
    assert bool(counts) == bool(ratios)
    for count in counts:
        assert 1 <= count <= channels
        assert count == channels or (count % round_to == 0 and count % granularity == 0)
    if 1.0 in ratios:
        assert counts[-1] == channels


def test_counts_by_hand() -> None:
    assert ChannelRule((0.5, 0.6, 1.0), 8).counts(64) == (32, 40, 64)
    assert ChannelRule((0.01,), 8).counts(64) == (8,)
    assert ChannelRule((0.5,), 8).counts(4) == (4,)


def test_later_overrides_win_and_missing_parts_stay() -> None:
    rules = SpaceRules(
        weight_bits=(2, 4),
        activation_bits=(8,),
        overrides=(
            Override("layer*", weight_bits=(4,), channels=ChannelRule((0.5,))),
            Override("*.conv1", weight_bits=(8,)),
        ),
    )
    assert rules.for_names(["head"]).weight_bits == (2, 4)
    assert rules.for_names(["layer1.conv2"]).weight_bits == (4,)
    both = rules.for_names(["layer1.conv1"])
    assert (both.weight_bits, both.activation_bits, both.channels.ratios) == ((8,), (8,), (0.5,))
    assert both.overrides == ()
    assert rules.for_names(["head", "layer1.conv1"]) == both  # any of a group's names


def test_an_empty_override_switches_off() -> None:
    rules = SpaceRules(overrides=(Override("a", weight_bits=(), channels=ChannelRule(())),))
    assert rules.for_names(["a"]).weight_bits == ()
    assert rules.for_names(["a"]).channels.counts(8) == ()


def test_patterns_that_match_nothing_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("overrides:\n  - match: conv1\n  - match: layer9*\n    weight_bits: [4]\n")
    with pytest.raises(SpaceError, match=r"'layer9\*' matches none of conv1.*space.yaml, line 3"):
        load_rules(path).check_patterns(["conv1", "layer1"])
    path.write_text("model: x\nprotect: [conv1, nothing]\n")
    with pytest.raises(SpaceError, match=r"protect .*'nothing' matches none.*space.yaml, line 2"):
        load_rules(path).check_patterns(["conv1", "layer1"])
    load_rules(path).check_patterns(["conv1", "nothing"])


def test_protection_is_by_any_name_and_case() -> None:
    rules = SpaceRules(protect=("head*", "?.b"))
    assert rules.is_protected(["x", "head.linear"])
    assert rules.is_protected(["a.b"])
    assert not rules.is_protected(["Head", "aa.b"])


@pytest.mark.parametrize("bits", [(1,), (9,), (16,), (4.5,), ("4",), (True,)])
def test_rules_made_in_code_are_checked_too(bits: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match="weight_bits"):
        SpaceRules(weight_bits=bits)
    with pytest.raises(SpaceError, match="activation_bits"):
        Override("a", activation_bits=bits)


@pytest.mark.parametrize("ratio", [0, 1.5, float("nan"), float("inf"), -1])
def test_ratios_and_multiples_made_in_code(ratio: float) -> None:
    with pytest.raises(SpaceError, match=r"channels\.ratios"):
        ChannelRule((0.5, ratio))
    with pytest.raises(SpaceError, match=r"channels\.round_to"):
        ChannelRule((0.5,), 0)


def test_shares_of_kernels_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "kernel_sparsity: [0.5, 0, 0.25]\noverrides:\n  - {match: a, kernel_sparsity: []}\n"
    )
    rules = load_rules(path)
    assert rules.kernel_sparsity == (0.0, 0.25, 0.5)
    assert rules.for_names(["a"]).kernel_sparsity == ()
    assert rules.for_names(["b"]).kernel_sparsity == (0.0, 0.25, 0.5)
    path.write_text("weight_bits: [4]\nkernel_sparsity: [0.5, 1]\n")
    with pytest.raises(SpaceError, match=r"in \[0, 1\).*has 1;.*space.yaml, line 2"):
        load_rules(path)
    path.write_text("kernel_sparsity: 0.5\n")
    with pytest.raises(SpaceError, match="must be a list"):
        load_rules(path)


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan"), "0.5"])
def test_shares_made_in_code_are_checked_too(share: float) -> None:
    with pytest.raises(SpaceError, match="kernel_sparsity"):
        SpaceRules(kernel_sparsity=(0.0, share))
    with pytest.raises(SpaceError, match="kernel_sparsity"):
        Override("a", kernel_sparsity=(share,))
