"""Writes a page as one HTML file: markup, style, script, pictures and results are all in it, and it loads nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from dysharp_env.files import write_text
from dysharp_env.report.page.parts import Page

FILE = "index.html"
_MOST_PLAIN_BYTES = 400_000  # of results that are not compressed


def write_page(folder: str | Path, page: Page) -> Path:
    """Writes a page as ``index.html`` into a folder and returns the file.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = Path(folder) / FILE
    write_text(path, html(page))
    return path


def html(page: Page) -> str:
    """Returns a page as HTML; the same page gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    url, name = _download(page.document)
    return environment.get_template("page.html").render(
        page=page,
        command=shlex.join(page.command),
        digest=config_digest(page.document),
        download=url,
        download_name=name,
        style=_read("page.css"),
        script=_read("timeline.js"),
        has_timeline=any(part.kind == "timeline" for section in page.sections for part in section.parts),
    )


def config_digest(document: dict[str, Any]) -> str:
    """Returns a digest of what a JSON result depends on: its configuration and seed."""
    asked = {"config": document["config"], "seed": document["seed"]}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _download(document: dict[str, Any]) -> tuple[str, str]:
    """Returns a JSON result as a data URL, and the name of the file that it is saved as."""
    content = json.dumps(document, indent=1, allow_nan=False).encode()
    name = f"{document['schema'].split('/')[1]}.json"
    if len(content) <= _MOST_PLAIN_BYTES:
        return f"data:application/json;base64,{base64.b64encode(content).decode()}", name
    packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
    return f"data:application/gzip;base64,{packed}", f"{name}.gz"


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
