"""Real traces, loads and placements that lie in a folder ``shared`` beside the checkout, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
# Beside the checkout, or beside the folder that this and other checkouts are in.
_FOLDERS = [folder / "shared" for folder in _ROOT.parents[:2]]
SHARED = next((folder for folder in _FOLDERS if (folder / "traces").is_dir()), _FOLDERS[0])
needs_shared = pytest.mark.skipif(not (SHARED / "traces").is_dir(), reason="needs the folder 'shared' of real traces")
