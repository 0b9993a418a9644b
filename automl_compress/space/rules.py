"""Search-space files: rules that say which choices the parts of a network get.

A file under `search_spaces/` holds rules, not genes: ratios, bit choices, overrides by name
pattern, protected layers. `compress.derive` resolves them against a network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from automl_compress.errors import SpaceError
from automl_compress.settings import Origin, Section, file_path, shown
from automl_compress.space.genes import LAYER_KINDS, Kind, check_value

BitKind = Literal["weight_bits", "activation_bits"]

DEFAULT_RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
DEFAULT_WEIGHT_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class ChannelRule:
    """Which channel counts a coupled group may keep.

    Args:
        ratios: shares of the channels kept, each in (0, 1]; empty means the group is not cut.
        round_to: counts are rounded to multiples of this, at least one multiple, and never
            above the original count.
    """

    ratios: tuple[float, ...] = DEFAULT_RATIOS
    round_to: int = 1

    def __post_init__(self) -> None:
        for ratio in self.ratios:
            if not 0 < ratio <= 1:
                raise SpaceError(
                    f"channels.ratios must be in (0, 1], but holds {ratio}; correct it"
                )
        if self.round_to < 1:
            raise SpaceError(
                f"channels.round_to must be at least 1, but is {self.round_to}; correct it"
            )

    def counts(self, channels: int, granularity: int = 1) -> tuple[int, ...]:
        """Channel counts offered for a group of `channels`, ascending.

        Args:
            channels: the group's original channels.
            granularity: the network's own multiple, for grouped convolutions.
        """
        step = math.lcm(self.round_to, granularity)
        cut = {max(step, round(r * channels / step) * step) for r in self.ratios if r < 1}
        whole = {channels for r in self.ratios if r == 1}  # need not be a multiple
        return tuple(sorted({min(count, channels) for count in cut} | whole))


@dataclass(frozen=True)
class Override:
    """Rules for the layers and groups whose name matches a pattern.

    Args:
        match: a shell-style pattern, `*` and `?` as in file names.
        channels: replaces the channel rule, or None to keep it.
        weight_bits: replaces the weight bits, or None to keep them.
        activation_bits: replaces the activation bits, or None to keep them.
        kernel_sparsity: replaces the shares of kernels removed, or None to keep them.
        origin: where the override was written.
    """

    match: str
    channels: ChannelRule | None = None
    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] | None = None
    kernel_sparsity: tuple[float, ...] | None = None
    origin: Origin = field(default=Origin("overrides"), compare=False)

    def __post_init__(self) -> None:
        for kind in LAYER_KINDS:
            _check_values(kind, getattr(self, kind) or (), f"override '{self.match}'")


@dataclass(frozen=True)
class SpaceRules:
    """Rules that turn a network into a search space.

    Args:
        channels: which channel counts groups may keep.
        weight_bits: bit-widths of every layer's weights; empty leaves weights in float32.
        activation_bits: bit-widths of every layer's input; empty leaves them in float32.
        kernel_sparsity: shares of every convolution's 2-D kernels that may be removed, each in
            [0, 1); empty removes none.
        overrides: replacements by name pattern; later ones win.
        protect: patterns of layers that are neither cut nor quantized nor thinned.
        origin: where the rules were written, for messages.

    Raises:
        SpaceError: a ratio, multiple, bit-width or share is out of range.
    """

    channels: ChannelRule = ChannelRule()
    weight_bits: tuple[int, ...] = DEFAULT_WEIGHT_BITS
    activation_bits: tuple[int, ...] = ()
    kernel_sparsity: tuple[float, ...] = ()
    overrides: tuple[Override, ...] = ()
    protect: tuple[str, ...] = ()
    origin: Origin = field(default=Origin("space rules"), compare=False)

    def __post_init__(self) -> None:
        for kind in LAYER_KINDS:
            _check_values(kind, getattr(self, kind), "the space")

    def to_dict(self) -> dict[str, Any]:
        """What a search-space file with these rules holds."""
        return {
            **_kinds_of(self),
            "overrides": [{"match": one.match, **_kinds_of(one)} for one in self.overrides],
            "protect": list(self.protect),
        }

    def for_names(self, names: Iterable[str]) -> SpaceRules:
        """The rules with every override applied that matches one of a part's names."""
        known = list(names)
        result = replace(self, overrides=())
        for override in self.overrides:
            if _matches(override.match, known):
                changes = {
                    name: value
                    for name in ("channels", *LAYER_KINDS)
                    if (value := getattr(override, name)) is not None
                }
                result = replace(result, **changes)
        return result

    def is_protected(self, names: Iterable[str]) -> bool:
        """Whether a protect pattern matches one of a part's names."""
        known = list(names)
        return any(_matches(pattern, known) for pattern in self.protect)

    def check_patterns(self, names: Iterable[str]) -> None:
        """Check that every pattern matches something.

        Raises:
            SpaceError: one matches no name.
        """
        known = list(names)
        patterns = [(o.match, o.origin, "an override") for o in self.overrides]
        patterns += [(pattern, self.origin, "protect") for pattern in self.protect]
        for pattern, origin, what in patterns:
            if not _matches(pattern, known):
                raise SpaceError(
                    f"{what} must match a layer, but '{pattern}' matches none of "
                    f"{', '.join(known[:4])}... ({origin}); correct the pattern"
                )


def _kinds_of(rules: SpaceRules | Override) -> dict[str, Any]:
    """What rules say of channels and of layers, as a file holds it."""
    stated: dict[str, Any] = {kind: getattr(rules, kind) for kind in LAYER_KINDS}
    found: dict[str, Any] = {kind: list(v) for kind, v in stated.items() if v is not None}
    if (cut := rules.channels) is not None:
        found["channels"] = {"ratios": list(cut.ratios), "round_to": cut.round_to}
    return found


def load_rules(path: str | Path) -> SpaceRules:
    """Read a search-space file.

    Raises:
        SpaceError: the file is wrong; the message names file, key and line.
    """
    from automl_compress.settings_file import read_settings  # needs PyYAML, the rest does not

    return rules_from_section(
        read_settings(file_path(path, "a search-space file"), error=SpaceError)
    )


def rules_from_section(section: Section) -> SpaceRules:
    """Rules of a mapping with a search-space file's keys.

    Raises:
        SpaceError: a key is unknown or a value is wrong.
    """
    section.get("model", str, "")  # says which network the file was written for
    rules = SpaceRules(
        channels=_read_channel_rule(section),
        weight_bits=_read_bits(section, "weight_bits", DEFAULT_WEIGHT_BITS),
        activation_bits=_read_bits(section, "activation_bits", ()),
        kernel_sparsity=_read_sparsity(section),
        overrides=tuple(_read_override(inner) for inner in section.sections("overrides")),
        protect=section.items("protect", str, ()),
        origin=section.origin("protect"),
    )
    section.close()
    return rules


def _read_override(section: Section) -> Override:
    override = Override(
        match=section.get("match", str),
        channels=_read_channel_rule(section) if "channels" in section else None,
        weight_bits=(_read_bits(section, "weight_bits", ()) if "weight_bits" in section else None),
        activation_bits=(
            _read_bits(section, "activation_bits", ()) if "activation_bits" in section else None
        ),
        kernel_sparsity=_read_sparsity(section) if "kernel_sparsity" in section else None,
        origin=section.origin("match"),
    )
    section.close()
    return override


def _read_channel_rule(section: Section) -> ChannelRule:
    values = section.section("channels")
    ratios = tuple(float(r) for r in values.items("ratios", float, DEFAULT_RATIOS))
    round_to = values.get("round_to", int, 1)
    values.close()
    try:
        return ChannelRule(ratios, round_to)
    except SpaceError as reason:
        key = "round_to" if "round_to" in str(reason) else "ratios"
        raise values.fail(str(reason), key) from reason


def _read_bits(section: Section, kind: BitKind, default: tuple[int, ...]) -> tuple[int, ...]:
    bits = section.items(kind, int, default)
    _check_read(section, kind, bits)
    return tuple(sorted(set(bits)))


def _read_sparsity(section: Section) -> tuple[float, ...]:
    shares = section.items("kernel_sparsity", float, ())
    _check_read(section, "kernel_sparsity", shares)
    return tuple(sorted({float(share) for share in shares}))


def _check_read(section: Section, kind: Kind, values: tuple[float, ...]) -> None:
    try:
        _check_values(kind, values, f"'{section.name(kind)}'")
    except SpaceError as reason:
        raise section.fail(str(reason), kind) from reason


def _check_values(kind: Kind, values: tuple[float, ...], where: str) -> None:
    if not isinstance(values, Sequence):
        raise SpaceError(f"{kind} must be a tuple, but {where} has {shown(values)}; correct it")
    for value in values:
        check_value(kind, value, where)


def _matches(pattern: str, names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
