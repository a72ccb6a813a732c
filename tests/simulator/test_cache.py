"""The compiled kernel's cache follows the content of every file that is compiled into it."""

from __future__ import annotations

from pathlib import Path

import pytest
from numba import config

from dysharp_env.simulator.jit import cache
from dysharp_env.simulator.kernel import loop


def test_any_changed_source_gives_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, records = tmp_path / "kernel" / "choices", tmp_path / "state"
    for folder in (kernel, records, tmp_path / "twin"):
        folder.mkdir(parents=True)
    (kernel / "one.py").write_text("@compiled\n")
    (records / "two.py").write_text("@njit\n")
    (tmp_path / "twin" / "plain.py").write_text("x = 1\n")
    monkeypatch.setattr(cache, "_ROOM", tmp_path)
    before = cache.cache_folder()
    (tmp_path / "twin" / "plain.py").write_text("x = 2\n")
    assert cache.cache_folder() == before
    (kernel / "one.py").write_text("@compiled\nx = 3\n")
    assert cache.cache_folder() != before
    before = cache.cache_folder()
    (records / "two.py").write_text("@njit\nx = 3\n")
    assert cache.cache_folder() != before


def test_the_user_s_folder_goes_first_and_their_setting_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    folder = cache.cache_folder()
    assert folder is not None and folder.parent == tmp_path
    with cache.kernel_cache():
        assert config.CACHE_DIR == str(folder)
    assert config.CACHE_DIR == str(tmp_path)


def test_the_kernel_is_cached_there() -> None:
    assert "kernel-" in loop.advance.stats.cache_path
