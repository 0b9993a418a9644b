"""What a training says before it begins, and as it goes on."""

from __future__ import annotations

import pytest

from automl_compress.cli.training_progress import tell_fixed


def test_what_is_not_trained_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tell_fixed(frozenset())
    assert not capsys.readouterr().out
    tell_fixed(frozenset({"b.weight", "a.weight"}))
    assert capsys.readouterr().out == (
        "parameters that are not trained, as the factory froze them: 2, such as 'a.weight'\n"
    )
