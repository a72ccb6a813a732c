"""Tables by name, and from a CSV file: what is shipped, what is published singly, and what people bring."""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dysharp_env.config import ConfigError, require_choice
from dysharp_env.validation.tables.kinds import KINDS, Kind
from dysharp_env.validation.tables.published import published_readings
from dysharp_env.validation.tables.readings import CannotExpressError, Reading, Row, Table

DATA = Path(__file__).resolve().parents[1] / "data"
# Published singly, not as a file.
PUBLISHED, ALL = "published", "all"
_SUFFIXES = (".csv", ".csv.gz")


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
    columns = next(csv.reader(io.StringIO(text)), [])
    kind = _kind_of(columns, name_or_path)
    readings_found: list[Reading] = []
    left_out: Counter[str] = Counter()
    rows = 0
    for row in _rows(text, name_or_path):
        rows += 1
        try:
            readings_found += kind.read(row, seed)
        except CannotExpressError as reason:
            left_out[str(reason)] += 1
    if not rows:
        raise ConfigError(f"table='{name_or_path}' has no rows under its header")
    return Table(name_or_path, rows, tuple(readings_found), dict(left_out))


def _text_of(path: Path, given: str) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read table='{given}': {why}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read table='{given}': it is no text in UTF-8") from None


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
    reader = csv.reader(io.StringIO(text))
    header = [column.strip() for column in next(reader)]
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise ConfigError(f"'{given}', line {reader.line_num}: {len(cells)} cells under {len(header)} columns")
        yield Row(given, reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True)))
