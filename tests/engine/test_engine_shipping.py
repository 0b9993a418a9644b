from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from automl_compress.engine.shipping import copy_own_modules, import_roots

FILES = {
    "here/single_module.py": "import own_package.late\n",
    "here/own_package/__init__.py": "",
    "here/own_package/late/__init__.py": "",
    "here/own_package/late/data.csv": "1,2",
    "here/own_package/never.py": "raise RuntimeError",
    "here/bare_package/inner.py": "",
    "here/not_imported.py": "",
    "here/site-packages/installed_module.py": "",
    "there/from_the_path.py": "",
    "elsewhere/of_nobody.py": "",
    "elsewhere/linked_package/__init__.py": "",
    "elsewhere/linked_package/deeper/inner.py": "",
    "elsewhere/linked_module.py": "",
}
LINKS = ("linked_package", "linked_module.py")
IMPORTED = (
    *("single_module", "own_package.late", "bare_package.inner", "installed_module"),
    *("linked_package.deeper.inner", "linked_module"),
)


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Modules in the current folder, on the path, installed, and of neither."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in LINKS:
        (tmp_path / "here" / name).symlink_to(tmp_path / "elsewhere" / name)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "there"))
    folders = ("here", "there", "elsewhere", "here/site-packages")
    monkeypatch.setattr(sys, "path", [*(str(tmp_path / f) for f in folders), *sys.path])
    before = set(sys.modules)
    for name in (*IMPORTED, "from_the_path", "of_nobody"):
        importlib.import_module(name)
    made = {name: sys.modules.pop(name) for name in set(sys.modules) - before}
    return {**made, "automl_compress": sys.modules["automl_compress"], "sys": sys}


def test_modules_of_the_folder_and_the_path_are_copied(
    imported: dict[str, object], tmp_path: Path
) -> None:
    """With all sources of their packages, and nothing that is installed or was not imported."""
    assert import_roots() == (tmp_path / "here", tmp_path / "there")
    folder = tmp_path / "copied"
    assert copy_own_modules(folder, imported)  # type: ignore[arg-type]
    found = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert found == {
        "single_module.py",
        "own_package/__init__.py",
        "own_package/late/__init__.py",
        "own_package/never.py",
        "bare_package/inner.py",
        "from_the_path.py",
        "linked_package/__init__.py",
        "linked_package/deeper/inner.py",
        "linked_module.py",
    }


def test_where_there_are_none_nothing_is_copied(tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    assert not copy_own_modules(folder, {"sys": sys, "pytest": pytest})
    assert not folder.exists()
