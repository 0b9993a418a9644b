"""The tree of errors at the head of their module is the tree there is."""

from __future__ import annotations

import re

from automl_compress import errors


def test_the_tree_that_is_drawn_holds_every_error_below_its_parent() -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.match("[│├└C]", line)]
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in lines:
        name = re.search(r"[A-Z]\w+", line)
        assert name is not None
        depth = name.start() // 4
        above = [*above[:depth], name[0]]
        drawn[name[0]] = above[depth - 1] if depth else ""
    own = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    made = {
        kind.__name__: kind.__bases__[0].__name__
        for kind in own
        if issubclass(kind, errors.CompressError)
    }
    assert drawn == {**made, "CompressError": ""}
