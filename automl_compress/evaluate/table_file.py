"""Files of tables: read as who wrote them meant them, or refused."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from automl_compress.errors import StudyError
from automl_compress.settings import one_line, shown

_PARQUET: Final = (".parquet", ".pq")


def read_frame(path: Path, genes: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of a table, their names without the blanks around them.

    Args:
        path: `.csv`, also compressed, or `.parquet` or `.pq`.
        genes: columns where words such as NA and None are choices, if a CSV has other words there
            too. Elsewhere they are gaps, as empty cells are everywhere.

    Raises:
        StudyError: the file cannot be read, has no commas between cells, repeats a column, or has
            rows of more cells than its header.
    """
    try:
        if path.suffix in _PARQUET:
            frame = pd.read_parquet(path)
        else:
            _check_header(path)
            frame = _read_csv(path)
    except StudyError:
        raise
    except UnicodeDecodeError as reason:
        raise StudyError(
            f"a table must be CSV in UTF-8 or Parquet, but '{path}' has other characters; save it "
            "as CSV in UTF-8"
        ) from reason
    except pd.errors.ParserWarning as reason:
        raise StudyError(
            f"rows must have as many cells as the header, but those of '{path}' have more; name "
            "all columns, or remove what has no name"
        ) from reason
    except Exception as reason:
        raise StudyError(
            f"a table must be CSV or Parquet, but '{path}' cannot be read: {one_line(reason)}; "
            "give another file"
        ) from reason
    frame.columns = pd.Index([str(column).strip() for column in frame])
    _check_differ(frame.columns, path)
    if path.suffix not in _PARQUET:
        _put_words(frame, path, genes)
    return frame


def _check_header(path: Path) -> None:
    """Check the names as they are written: pandas makes `x` and `x.1` of two `x`."""
    names = _read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    if len(names) == 1:
        raise StudyError(
            f"cells must be parted by commas, but '{path}' has none between its columns "
            f"{shown(str(names[0]))}; save it with commas"
        )
    written = pd.Index(names.str.strip())
    _check_differ(written[written != ""], path)


def _check_differ(names: pd.Index, path: Path) -> None:
    if names.has_duplicates:
        raise StudyError(
            f"columns must differ, but '{path}' repeats "
            f"'{names[names.duplicated()][0]}'; rename or remove one"
        )


def _read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Every cell below its column; commas that end a row without a cell after them are left out.

    Raises:
        ParserWarning: cells stand below no column.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame: pd.DataFrame = pd.read_csv(path, index_col=False, skipinitialspace=True, **options)
    return frame


def _put_words(frame: pd.DataFrame, path: Path, columns: Sequence[str]) -> None:
    """Put the words that pandas takes for gaps where a column has other words too."""
    for place, column in enumerate(frame):
        gaps = frame[column].isna()
        if column in columns and gaps.any() and not pd.api.types.is_numeric_dtype(frame[column]):
            words = _read_csv(
                path, usecols=[place], dtype=str, keep_default_na=False, na_values=[""]
            )
            frame[column] = words.iloc[:, 0]
