"""The ledger of evaluations and charges, and a study's folder read back."""

from automl_compress.ledger.manifest import (
    AUDIT,
    LEDGER,
    MANIFEST,
    RECOVERED,
    ContestantRecord,
    Manifest,
    RungRecord,
)
from automl_compress.ledger.result import (
    TIMING_COLUMNS,
    FrontPoint,
    StudyResult,
    study_folder,
)
from automl_compress.ledger.store import Charge, Ledger, Place
from automl_compress.ledger.whole_file import write_text

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
    "study_folder",
    "write_text",
]
