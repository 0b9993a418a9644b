"""The table of who may import whom, held against the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "automl_compress"

# Part of the package: parts it may import besides itself, errors, settings and user_code.
MAY_IMPORT = {
    "errors": set(),
    "settings": set(),
    "user_code": set(),
    "settings_file": set(),
    "pareto": set(),
    "space": set(),
    "workload": set(),
    "compress": {"space", "workload"},
    "deploy": {"space", "workload", "compress"},
    "evaluate": {"space", "workload", "compress", "pareto"},
    "recover": {"space", "workload", "compress"},
    "ledger": {"space", "evaluate", "pareto"},
    "search": {"space", "evaluate", "pareto"},
    # deploy: a study whose objective is the latency has its networks timed. recover: a rung of the
    # fidelity ladder trains candidates.
    "engine": {
        *("space", "workload", "compress", "deploy", "evaluate", "ledger", "search", "pareto"),
        "recover",
    },
    "report": {"space", "evaluate", "ledger", "pareto"},
    "finish": {
        *("space", "workload", "compress", "deploy", "evaluate", "recover", "ledger", "engine"),
        "report",
    },
    "testing": {"space", "evaluate", "search", "ledger", "engine", "workload", "pareto"},
    "bench": {
        *("space", "workload", "compress", "deploy", "evaluate", "search", "testing", "pareto"),
        *("engine", "ledger"),  # what the engine itself costs is measured too
        "recover",
    },
    "cli": {
        "bench",
        "space",
        "workload",
        "compress",
        "deploy",
        "ledger",
        "engine",
        "report",
        "recover",
        "evaluate",
        "search",
        "finish",
    },
    "__init__": {
        *("space", "workload", "compress", "deploy", "ledger", "engine", "report", "recover"),
        "finish",
    },
    "__main__": {"cli"},
}

# Imports that go against the table, each with its reason.
EXCEPTIONS = {
    # The public one-liner SearchSpace.from_model; imported when it is called.
    ("space/search_space.py", "compress"),
}

# Which files may use which heavy library.
ONLY_IN = {
    "ray": {"engine/asha.py", "engine/cluster.py", "engine/dispatcher.py"},
    "pymoo": {"search/nsga2.py"},
    "optuna": {"search/optuna_search.py", "search/optuna_tpe.py"},
    "matplotlib": {"report"},
    "scipy": {"report/replay.py", "search/gaussian_process.py"},
    "sklearn": {"workload", "evaluate/predictor.py", "engine/error_regressions.py"},
    "torchvision": {"workload"},
    "torchmetrics": {"workload/mean_precision.py"},
    "faster_coco_eval": {"workload/mean_precision.py"},
    "yaml": {"settings_file.py"},
    "sqlite3": {"ledger"},
    "onnx": {"deploy"},
    "onnx_ir": {"deploy"},
    "onnxruntime": {"deploy/runtime.py"},
}

NEVER = {
    "report": {"torch", "ray"},
    "ledger": {"torch", "ray"},
    "space": {"torch", "ray"},
    "workload": {"ray", "pymoo", "optuna"},
    "compress": {"ray", "pymoo", "optuna"},
    "deploy": {"ray", "pymoo", "optuna", "pandas"},
    "evaluate": {"ray", "pymoo", "optuna"},
    "recover": {"ray", "pymoo", "optuna", "yaml", "pandas"},
}

# torch is loaded by learners only; the other strategies run where it is slow to load.
TORCH_IN_SEARCH = {"search/networks.py", "search/actor_critic.py", "search/value_mixing.py"}

FILES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Modules a file imports at run time, wherever the import stands."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and _is_module_name(node.value):
            found.add(node.value)
    return found


def _is_module_name(value: object) -> bool:
    """Whether a text names a module: names that are imported on first use stand as texts."""
    return isinstance(value, str) and value.startswith("automl_compress.") and " " not in value


def _part(relative: Path) -> str:
    return relative.parts[0].removesuffix(".py")


def test_the_table_names_every_part() -> None:
    parts = {_part(path.relative_to(PACKAGE)) for path in FILES}
    assert parts <= set(MAY_IMPORT), parts - set(MAY_IMPORT)


FILES_OF = {
    part: [path for path in FILES if _part(path.relative_to(PACKAGE)) == part]
    for part in sorted({_part(path.relative_to(PACKAGE)) for path in FILES})
}


@pytest.mark.parametrize("part", FILES_OF)
def test_imports_follow_the_table(part: str) -> None:
    for path in FILES_OF[part]:
        _check_imports(path, part)


def _check_imports(path: Path, part: str) -> None:
    relative = path.relative_to(PACKAGE)
    for name in _imports(path):
        pieces = name.split(".")
        if pieces[0] != "automl_compress" or len(pieces) < 2:
            continue
        other = pieces[1]
        if not (PACKAGE / other).is_dir() and not (PACKAGE / f"{other}.py").is_file():
            continue
        allowed = MAY_IMPORT[part] | {part, "errors", "settings", "settings_file", "user_code"}
        if (relative.as_posix(), other) in EXCEPTIONS:
            continue
        assert other in allowed, f"{relative} must not import {name}"


@pytest.mark.parametrize("part", FILES_OF)
def test_heavy_libraries_stay_in_their_place(part: str) -> None:
    for path in FILES_OF[part]:
        _check_libraries(path)


def _check_libraries(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    libraries = {name.split(".")[0] for name in _imports(path)}
    for library, places in ONLY_IN.items():
        if library in libraries:
            assert any(relative == p or relative.startswith(f"{p}/") for p in places), (
                f"{relative} must not import {library}"
            )
    for part, forbidden in NEVER.items():
        if relative.startswith(f"{part}/"):
            assert not libraries & forbidden, f"{relative} imports {libraries & forbidden}"
    if relative.startswith("search/") and "torch" in libraries:
        assert relative in TORCH_IN_SEARCH


def test_every_exception_is_still_needed() -> None:
    for relative, other in EXCEPTIONS:
        names = _imports(PACKAGE / relative)
        assert any(name.startswith(f"automl_compress.{other}") for name in names)


def test_there_are_no_import_cycles() -> None:
    graph = {part: set(others) for part, others in MAY_IMPORT.items()}
    done: list[str] = []
    while graph:
        free = [part for part, others in graph.items() if others <= set(done)]
        assert free, f"a cycle among {sorted(graph)}"
        done += free
        for part in free:
            del graph[part]


def test_the_top_level_holds_only_what_belongs_there() -> None:
    allowed = {
        *("automl_compress", "search_spaces", "sweeps", "results", "tests", "pyproject.toml"),
        *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
    }
    present = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert present - {"dist", "build", "automl_compress.egg-info"} <= allowed


def test_nothing_is_called_utils() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "misc"}]
