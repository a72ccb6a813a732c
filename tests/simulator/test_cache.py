"""The compiled kernel's cache follows the content of every file that is compiled into it."""

from __future__ import annotations

from numba import config

from dysharp_env.simulator import cache, kernel


def test_any_changed_source_gives_another_folder(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text("@compiled\n")
    (tmp_path / "two.py").write_text("@njit\n")
    (tmp_path / "plain.py").write_text("x = 1\n")
    monkeypatch.setattr(cache, "_ROOM", tmp_path)
    before = cache.cache_folder()
    (tmp_path / "plain.py").write_text("x = 2\n")
    assert cache.cache_folder() == before
    (tmp_path / "one.py").write_text("@compiled\nx = 3\n")
    assert cache.cache_folder() != before
    before = cache.cache_folder()
    (tmp_path / "two.py").write_text("@njit\nx = 3\n")
    assert cache.cache_folder() != before


def test_the_user_s_folder_goes_first_and_their_setting_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    folder = cache.cache_folder()
    assert folder.parent == tmp_path
    with cache.kernel_cache():
        assert config.CACHE_DIR == str(folder)
    assert config.CACHE_DIR == str(tmp_path)


def test_the_kernel_is_cached_there():
    assert "kernel-" in kernel.advance.stats.cache_path
