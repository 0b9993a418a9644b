"""The user's own modules, for machines of a cluster that do not have them.

Networks, data and strategies of the user's own come from the current folder, which on another
machine may hold something else or not exist.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

_INSTALLED: Final = ("site-packages", "dist-packages")


def import_roots() -> tuple[Path, ...]:
    """Folders that the user's modules are imported from: the current one and `PYTHONPATH`'s."""
    named = os.getenv("PYTHONPATH", "").split(os.pathsep)
    folders: list[str] = ["", *filter(None, named)]
    return tuple(dict.fromkeys(Path(folder).resolve() for folder in folders))


def copy_own_modules(folder: Path, modules: Mapping[str, ModuleType] | None = None) -> bool:
    """Copy the sources of modules that were imported from `import_roots`.

    Of a package all sources are copied, for some may be imported later.

    Args:
        folder: where to; whoever imports from there finds them.
        modules: those imported so far, by name; `sys.modules` when not given.

    Returns:
        Whether there were any.
    """
    roots = import_roots()
    modules = dict(sys.modules if modules is None else modules)
    copied = False
    for name in sorted({name.partition(".")[0] for name in modules}):
        module = modules.get(name)
        if module is None or name == __package__.partition(".")[0]:
            continue
        for source, place in _sources(module, roots):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / place)
            copied = True
    return copied


def _sources(module: ModuleType, roots: tuple[Path, ...]) -> Iterator[tuple[Path, Path]]:
    """Files of a module or package, and their places below the folder it is imported from."""
    places: list[str] = [*getattr(module, "__path__", ())] or [
        getattr(module, "__file__", "") or ""
    ]
    for place in map(Path, filter(None, places)):
        root = place.parent.resolve()  # of a link, the folder that holds the link
        found = root / place.name
        if root in roots and not set(found.parts) & set(_INSTALLED):
            sources = sorted(found.rglob("*.py")) if found.is_dir() else [found]
            yield from ((source, source.relative_to(root)) for source in sources)
