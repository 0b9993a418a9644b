from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from automl_compress.errors import InputError, SpaceError
from automl_compress.recover import section_of
from automl_compress.settings import Origin, Section, as_stated, shown, significant, suggestion
from automl_compress.settings_file import read_settings
from automl_compress.space import SpaceRules, load_rules


def _write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _refused(path: Path, *parts: str, line: int | None) -> None:
    with pytest.raises(SpaceError) as caught:
        load_rules(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for part in parts:
        assert part in message
    if line is not None:
        assert f"line {line})" in message


BITS = ["0", "1", "9", "16", '"4"', "4.5", "true", "null", "-2", "[4]"]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["weight_bits", "activation_bits"])
def test_bits_out_of_range_or_type(tmp_path: Path, kind: str, bits: str) -> None:
    _refused(_write(tmp_path, f"model: x\n{kind}: [4, {bits}]\n"), kind, line=2)
    override = f"overrides:\n  - match: conv*\n    {kind}: [4, {bits}]\n"
    _refused(_write(tmp_path, override), kind, line=3)


@pytest.mark.parametrize("ratio", ["0", "1.5", ".nan", ".inf", "-.inf", "-0.5", '"0.5"', "true"])
def test_ratios_out_of_range_or_type(tmp_path: Path, ratio: str) -> None:
    text = f"\nchannels:\n  round_to: 2\n  ratios: [0.5, {ratio}]\n"
    _refused(_write(tmp_path, text), "channels.ratios", line=4)


@pytest.mark.parametrize(
    ("text", "parts", "line"),
    [
        ("channels:\n  round_to: 0\n", ["channels.round_to", "is 0"], 2),
        ("channels:\n  round_to: 2.5\n", ["channels.round_to", "an integer", "2.5"], 2),
        ("channels:\n  round_too: 8\n", ["'channels.round_too'", "did you mean 'round_to'?"], 2),
        ("weigth_bits: [4]\n", ["'weigth_bits'", "did you mean 'weight_bits'?"], 1),
        ("model: a\nzzz: 1\n", ["unknown key 'zzz'", "known here: activation_bits"], 2),
        ("weight_bits: 4\n", ["'weight_bits'", "a list", "is 4"], 1),
        ("channels: [0.5]\n", ["'channels'", "a mapping"], 1),
        ("channels:\nmodel: a\n", ["'channels'", "a mapping", "nothing"], 1),
        ("overrides:\n  - weight_bits: [4]\n", ["'overrides.0.match'", "missing"], 2),
        ("overrides:\n  - match: 3\n", ["'overrides.0.match'", "a text"], 2),
        ("overrides:\n  - match: a\n    bits: [4]\n", ["'overrides.0.bits'"], 3),
        ("overrides: [conv1]\n", ["'overrides'", "mappings", "conv1"], 1),
        ("protect: [1]\n", ["'protect'", "texts"], 1),
        ("model: a\nweight_bits: [4]\nmodel: b\n", ["key 'model'", "repeated"], 3),
        ("channels:\n  round_to: 1\n  round_to: 1\n", ["key 'round_to'", "repeated"], 3),
        ("a: [1\nb: 2\n", ["invalid YAML"], 2),
        ("a: &x [*x]\n", ["invalid YAML"], None),
        ("model: a\nb: *x\n", ["invalid YAML", "undefined alias"], 2),
        ("- model: a\n", ["must hold a mapping"], None),
        ("just words\n", ["must hold a mapping", "just words"], None),
        ("", ["must hold a mapping", "nothing"], None),
        ("# nothing\n", ["must hold a mapping", "nothing"], None),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_in_one_line(
    tmp_path: Path, text: str, parts: list[str], line: int | None
) -> None:
    _refused(_write(tmp_path, text), *parts, line=line)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    _refused(tmp_path / name, "cannot read", line=None)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(b"model: \xff\xfe\n")
    _refused(path, "cannot read", line=None)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{target}]",
        "!!python/object/apply:os.mkdir\n  - {target}",
        "!!python/object/apply:os.mkdir {{args: [{target}]}}",
        "!!python/object/new:os.mkdir {{args: [{target}]}}",
        "!!python/name:os.system ''",
        "!!set {{a, b}}",
        "!custom [4]",
        "!custom text",
    ],
)
def test_tags_are_refused_and_nothing_is_run(tmp_path: Path, value: str) -> None:
    target = tmp_path / "made"
    text = f"weight_bits: {value.format(target=target)}\n"
    _refused(_write(tmp_path, text), value.split()[0].removeprefix("!!"), line=1)
    with pytest.raises(InputError, match=r"--set weight_bits"):
        read_settings(_write(tmp_path, "model: a\n"), [text.strip().replace(": ", "=", 1)])
    assert not target.exists()


def test_empty_lists_switch_off(tmp_path: Path) -> None:
    text = (
        "weight_bits: []\nactivation_bits: []\nchannels: {ratios: []}\noverrides: []\nprotect: []\n"
    )
    rules = load_rules(_write(tmp_path, text))
    assert (rules.weight_bits, rules.activation_bits, rules.channels.ratios) == ((), (), ())
    assert rules.channels.counts(64) == ()
    assert (rules.overrides, rules.protect) == ((), ())


def test_an_empty_mapping_gives_the_defaults(tmp_path: Path) -> None:
    assert load_rules(_write(tmp_path, "{}\n")) == SpaceRules()


def test_bits_are_sorted_and_counted_once(tmp_path: Path) -> None:
    assert load_rules(_write(tmp_path, "weight_bits: [8, 2, 8, 4]\n")).weight_bits == (2, 4, 8)


def test_merge_keys_yield_to_the_mappings_own(tmp_path: Path) -> None:
    text = "base: &b {x: 1, y: 2}\nmine:\n  <<: *b\n  y: 3\n"
    assert read_settings(_write(tmp_path, text)).section("mine").plain() == {"x": 1, "y": 3}


# Overrides from the command line.


def test_set_replaces_adds_and_nests(tmp_path: Path) -> None:
    path = _write(tmp_path, "a: {b: 1, c: 2}\nd: x\n")
    section = read_settings(path, ["a.b=5", "a.e.f=[1, 2]", "d={g: null}", "h=0.5", "i="])
    assert section.plain() == {
        "a": {"b": 5, "c": 2, "e": {"f": [1, 2]}},
        "d": {"g": None},
        "h": 0.5,
        "i": None,
    }
    assert str(section.origin("a", "b")) == "--set a.b"
    assert str(section.origin("a", "c")) == f"{path}, line 1"
    assert str(section.origin("d", "g")) == "--set d"
    assert read_settings(path, "d=y").plain()["d"] == "y"
    assert section_of("epochs=2").plain() == section_of(["epochs=2"]).plain() == {"epochs": 2}


def test_the_last_set_wins(tmp_path: Path) -> None:
    assert read_settings(_write(tmp_path, "a: 1\n"), ["a=2", "a=3"]).plain() == {"a": 3}


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", ""])
def test_set_of_another_form(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"--set must be KEY\.SUBKEY=VALUE"):
        read_settings(_write(tmp_path, "a: 1\n"), [text])


def test_set_below_what_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--set a\.b: 'a' must be a mapping, but is 1"):
        read_settings(_write(tmp_path, "a: 1\n"), ["a.b=2"])


def test_wrong_values_of_set_name_it(tmp_path: Path) -> None:
    section = read_settings(_write(tmp_path, "a: 1\n"), ["a=x", "b=true"])
    with pytest.raises(InputError, match=r"'a' must be an integer, but is 'x'.*\(--set a\)"):
        section.get("a", int)
    with pytest.raises(InputError, match=r"'b' must be an integer.*\(--set b\)"):
        section.get("b", int)
    with pytest.raises(InputError, match="invalid YAML"):
        read_settings(_write(tmp_path, "a: 1\n"), ["a=[1"])


def test_what_aliases_stand_for_is_counted(tmp_path: Path) -> None:
    """Nine levels of nine are 387 million values in some 400 characters."""
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)]
    bomb = "\n".join(["l0: &l0 [x, x, x, x, x, x, x, x, x]", *levels])
    _refused(_write(tmp_path, bomb), "at most 100,000 values", "write fewer", line=None)
    merged = [f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    text = "\n".join(["l0: &l0 {a: 1}", *merged])
    _refused(_write(tmp_path, text), "at most 100,000 values", line=None)
    shared = read_settings(_write(tmp_path, "a: &x [1, 2]\nb: *x\nc: *x\n"))
    assert shared.plain() == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}


def test_numbers_to_base_60_are_texts(tmp_path: Path) -> None:
    section = read_settings(_write(tmp_path, "a: 1:30\nb: 1:30.5\nc: 130\n"), ["d=-1:30"])
    assert section.plain() == {"a": "1:30", "b": "1:30.5", "c": 130, "d": "-1:30"}


def test_one_remedy_is_enough(tmp_path: Path) -> None:
    _refused(_write(tmp_path, "a: 1\na: 2\n"), "remove one", line=2)
    for text, override in (("a: 1\na: 2\n", ()), ("a: 1\n", ("a={b: 1, b: 2}",))):
        with pytest.raises(InputError) as caught:
            read_settings(_write(tmp_path, text), override)
        assert "correct" not in str(caught.value)
        assert str(caught.value).startswith("key ")


# Readers.


def test_numbers_choices_and_lists(tmp_path: Path) -> None:
    path = _write(tmp_path, "n: 3\nx: .nan\nword: fats\nlist: [1, 2.5]\n")
    section = read_settings(path)
    assert section.number("n", float, low=3, high=3) == 3.0
    assert isinstance(section.get("n", float), float)
    with pytest.raises(InputError, match=r"'n' must be at least 4 and at most 9, but is 3.*line 1"):
        section.number("n", int, low=4, high=9)
    with pytest.raises(InputError, match=r"'x' must be at least 0, but is nan.*line 2"):
        section.number("x", float, low=0)
    with pytest.raises(InputError, match=r"one of fast, slow.*did you mean 'fast'\?.*line 3"):
        section.choice("word", ["fast", "slow"])
    assert section.items("list", float) == (1, 2.5)
    assert section.number("absent", int, 7, low=9) == 7
    with pytest.raises(InputError, match=r"'lists' must be given.*perhaps in place of 'list'"):
        section.get("lists", list)
    section.close()


def test_a_key_that_may_be_missing_is_suggested(tmp_path: Path) -> None:
    section = read_settings(_write(tmp_path, "latncy: 1\n"))
    assert "latency" not in section
    with pytest.raises(InputError, match="did you mean 'latency'"):
        section.close()


def test_suggestions_look_past_the_case_and_are_for_unknown_words() -> None:
    assert suggestion("MACS", ["macs", "params"]) == ", did you mean 'macs'?"
    assert suggestion("Mac", ["MACs"]) == ", did you mean 'MACs'?"
    assert suggestion("gene:1", ["gene:1", "gene:2"]) == ""
    assert suggestion("gene", ["other"]) == ""


def test_tuples_are_lists() -> None:
    section = Section({"list": (1, 2)}, {(): Origin("settings")}, ())
    assert section.items("list", int) == (1, 2)


def test_python_s_values_are_stated_as_a_file_states_them() -> None:
    given = {"weights": Path("a") / "b", "seeds": range(2), "n": np.int64(3), "on": True}
    stated = as_stated(
        {**given, "x": (np.float32(0.5), None), "y": [print]}, lambda v: "none" if v is None else v
    )
    assert json.dumps(stated["n"]) == "3"
    assert stated.pop("y") == [print]
    assert stated == {"weights": "a/b", "seeds": [0, 1], "n": 3, "on": True, "x": [0.5, "none"]}
    assert shown(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"


def test_close_names_the_key_nobody_read(tmp_path: Path) -> None:
    section = read_settings(_write(tmp_path, "a: 1\nb: 2\n"))
    section.get("a", int)
    with pytest.raises(InputError, match=r"unknown key 'b'.*line 2"):
        section.close()
    section.plain()
    section.close()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.016034, 4, "0.01603"), (0.85, 4, "0.8500"), (9.99996, 4, "10.00"), (12.346, 4, "12.35"),
        (73.494, 4, "73.49"), (1234.56, 4, "1,235"), (123456.0, 4, "123,456"),
        (-0.457, 4, "-0.4570"), (0.0, 4, "0.000"), (49.9, 3, "49.9"),
        (float("nan"), 4, "nan"), (float("inf"), 4, "inf"),
    ],
)  # fmt: skip
def test_measured_numbers_have_as_many_digits_whatever_their_size(
    value: float, digits: int, text: str
) -> None:
    assert significant(value, digits) == text
