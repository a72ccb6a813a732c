"""Tables by name, and from a CSV file: what is shipped, what is published singly, and what people bring."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dysharp_env.config import require_choice
from dysharp_env.files import ConfigError, foreign, read_bytes, read_gzip, shown
from dysharp_env.files.reading import decoded
from dysharp_env.validation.tables.kinds import KINDS, Kind
from dysharp_env.validation.tables.published import published_readings
from dysharp_env.validation.tables.readings import CannotExpressError, Reading, Row, Table

DATA = Path(__file__).resolve().parents[1] / "data"
# Published singly, not as a file.
PUBLISHED, ALL = "published", "all"
_SUFFIXES = (".csv", ".csv.gz")
_MOST_BYTES, _MOST_ROWS = 16 << 20, 100_000  # of a table


def table_names() -> list[str]:
    """Returns the names of the shipped tables."""
    return [*sorted(path.name.removesuffix(".csv.gz") for path in DATA.glob("*.csv.gz")), PUBLISHED]


def load_tables(names: list[str], seed: int = 0) -> list[Table]:
    """Returns the tables of names (``all`` for every shipped one) and of paths that end in .csv or .csv.gz, each once.

    Raises:
        ConfigError: There is no such table, or a file is wrong.
    """
    known = table_names()
    wanted: list[str] = []
    for name in names:
        if not name.endswith(_SUFFIXES):
            require_choice("table", name, [*known, ALL, "a path ending in .csv"])
        wanted += known if name == ALL else [name]
    return [load_table(name, seed) for name in dict.fromkeys(wanted)]


def load_table(name_or_path: str, seed: int = 0) -> Table:
    """Returns one table; ``seed`` draws routing and orders of tokens.

    Raises:
        ConfigError: There is no such table, its columns are of no known kind, or a cell is wrong.
    """
    if name_or_path == PUBLISHED:
        readings = tuple(published_readings(seed))
        return Table(PUBLISHED, len(readings), readings, {})
    path = Path(name_or_path) if name_or_path.endswith(_SUFFIXES) else DATA / f"{name_or_path}.csv.gz"
    text = _text_of(path, name_or_path)
    rows_found = _rows(text, name_or_path)
    columns = next(rows_found)
    kind = _kind_of(list(columns.cells), name_or_path)
    readings_found: list[Reading] = []
    left_out: Counter[str] = Counter()
    rows = 0
    for row in rows_found:
        rows += 1
        try:
            readings_found += kind.read(row, seed)
        except CannotExpressError as reason:
            left_out[shown(str(reason))] += 1
    if not rows:
        raise ConfigError(f"table='{name_or_path}' has no rows under its header")
    return Table(name_or_path, rows, tuple(readings_found), dict(left_out))


def _text_of(path: Path, given: str) -> str:
    content = (read_gzip if path.suffix == ".gz" else read_bytes)(path, _MOST_BYTES, "table")
    return decoded(content, f"table='{given}'")


def _kind_of(columns: list[str], given: str) -> Kind:
    """Returns the kind whose columns are all there; they tell the kinds apart.

    Raises:
        ConfigError: There is none; the message names what the nearest kind lacks.
    """
    lacking = {name: [column for column in kind.columns if column not in columns] for name, kind in KINDS.items()}
    nearest = min(lacking, key=lambda name: len(lacking[name]))
    if lacking[nearest]:
        raise ConfigError(
            f"'{given}', line 1: columns are of no known kind; nearest is {nearest}, without {lacking[nearest]}"
        )
    return KINDS[nearest]


def _rows(text: str, given: str) -> Iterator[Row]:
    """Yields the header, whose cells are the names of columns, and every row that is not blank.

    Raises:
        ConfigError: It is no CSV, has too many rows, or one of another length than the header.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    with foreign(f"'{given}'", "table in CSV"):
        header = [column.strip() for column in next(reader, [])]
        yield Row(given, 1, {column: column for column in header})
        for count, cells in enumerate(each for each in reader if each):
            if count >= _MOST_ROWS:
                raise ConfigError(f"'{given}', line {reader.line_num}: more than {_MOST_ROWS} rows cannot be read")
            if len(cells) != len(header):
                raise ConfigError(f"'{given}', line {reader.line_num}: {len(cells)} cells under {len(header)} columns")
            yield Row(given, reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True)))
