"""Files that people give and that are written: read up to a limit, whatever they are, and replaced whole.

All parsers of the project read through here. Nothing that a file holds, and no name of one, gives more than a
``ConfigError``, whose text is one line that can be printed.
"""

from dysharp_env.files.as_json import parse_json, read_json, read_mapping
from dysharp_env.files.as_yaml import parse_yaml, read_yaml
from dysharp_env.files.errors import ConfigError, Notice, shown
from dysharp_env.files.reading import check_size, foreign, open_file, read_bytes, read_gzip, read_text
from dysharp_env.files.writing import require_writable, write_bytes, write_text

__all__ = [
    "ConfigError",
    "Notice",
    "check_size",
    "foreign",
    "open_file",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_gzip",
    "read_json",
    "read_mapping",
    "read_text",
    "read_yaml",
    "require_writable",
    "shown",
    "write_bytes",
    "write_text",
]
