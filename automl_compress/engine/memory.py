"""What memory a process has for itself."""

from __future__ import annotations

from pathlib import Path

_COUNTED = ("Private_Clean:", "Private_Dirty:")


def private_bytes() -> int:
    """Memory of this process that it shares with no other, in bytes (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    fields = [line.split() for line in lines if line.startswith(_COUNTED)]
    return sum(int(field[1]) * 1024 for field in fields)
