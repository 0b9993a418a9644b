"""The ledger of evaluations and charges, and a study's folder read back."""

from automl_compress.ledger.result import (
    AUDIT,
    LEDGER,
    MANIFEST,
    RECOVERED,
    TIMING_COLUMNS,
    ContestantRecord,
    FrontPoint,
    Manifest,
    RungRecord,
    StudyResult,
    write_text,
)
from automl_compress.ledger.store import Charge, Ledger, Place

__all__ = [
    "AUDIT",
    "LEDGER",
    "MANIFEST",
    "RECOVERED",
    "TIMING_COLUMNS",
    "Charge",
    "ContestantRecord",
    "FrontPoint",
    "Ledger",
    "Manifest",
    "Place",
    "RungRecord",
    "StudyResult",
    "write_text",
]
