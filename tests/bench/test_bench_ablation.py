from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from automl_compress.bench.ablation import PARTS, WHOLE, Landscape
from automl_compress.cli import main
from automl_compress.search import build_strategy
from automl_compress.search.hybrid import Hybrid
from automl_compress.testing import ToyNetwork


def _table(path: Path) -> str:
    lines = ["channels_a,channels_b,top1,macs"]
    for a, b in itertools.product(range(1, 7), repeat=2):
        lines.append(f"{a},{b},{90 - 3 * (6 - a) ** 1.5 - (6 - b) ** 1.5},{a * b}")
    path.write_text("\n".join(lines))
    return str(path)


def test_every_part_has_a_switch_that_differs() -> None:
    problem = ToyNetwork(layers=2).problem()
    whole = Hybrid(problem, 0, **PARTS[WHOLE]).state_dict()
    for name, settings in PARTS.items():
        state = Hybrid(problem, 0, **settings).state_dict()
        assert settings or name == WHOLE
        fewer = len(state["members"]) < len(whole["members"])
        assert fewer == ("members" in settings)


def test_the_command_races_all_variants_on_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, table = tmp_path / "rows.json", tmp_path / "table.md"
    words = ["bench", "ablation", _table(tmp_path / "t.csv"), "--columns", "accuracy=top1"]
    words += ["--seeds", "1", "--budget", "6", "--json", str(rows), "--markdown", str(table)]
    assert main(words) == 0
    found = json.loads(rows.read_text())
    assert {row["strategy"] for row in found} == set(PARTS)
    assert {row["evaluations"] for row in found} == {1, 3, 6}
    assert "without the bandit" in table.read_text()
    assert "share of the exact front's" in capsys.readouterr().out
    assert main([*words, "--seeds", "0"]) == 2
    assert "--seeds must be at least 1" in capsys.readouterr().err
    assert main(["bench", "ablation", "--objectives", "error", "macs"]) == 2
    assert "must go with a table" in capsys.readouterr().err


def test_a_toy_race_counts_useful_networks_and_goes_on_when_the_space_ends() -> None:
    landscape = Landscape.of_toy(ToyNetwork(layers=1, harm=1.0))
    curves = landscape.race(build_strategy("random", landscape.problem, 0), 30)
    assert curves.shape == (2, 30)
    assert (np.diff(curves, axis=1) >= 0).all()
    assert (curves[:, 20:] == curves[:, 20:21]).all()
    assert 0 < curves[0, -1] < 1
    assert curves[1, -1] == pytest.approx(
        ToyNetwork(layers=1, harm=1.0).accuracy(landscape.problem.space.largest)
    )
