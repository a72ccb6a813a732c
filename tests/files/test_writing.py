"""Writing goes through links, straight into pipes and devices, keeps rights, honours the umask and leaves nothing."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dysharp_env.__main__ import main
from dysharp_env.commands.output import check_targets
from dysharp_env.files import ConfigError, require_writable, write_bytes, write_text
from dysharp_env.workload.traces import load_trace, save_trace


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link, second = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "second"
    link.symlink_to("there/target")
    second.symlink_to("link")
    for content in ("new", "replaced"):  # at first there is nothing where the links lead
        write_text(second, content)
        assert link.is_symlink() and second.is_symlink() and target.read_text() == content
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["target"]


def test_a_trace_is_written_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "link.npz").symlink_to("real.npz")
    save_trace(load_trace("recorded").window(0, 8), str(tmp_path / "link.npz"))
    assert (tmp_path / "link.npz").is_symlink() and load_trace(str(tmp_path / "real.npz")).num_tokens == 8


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0, 0o666)])
def test_the_umask_says_who_can_read_a_new_file(mask: int, mode: int, tmp_path: Path) -> None:
    with umask(mask):
        write_bytes(tmp_path / "new", b"x")
    assert mode_of(tmp_path / "new") == mode


def test_the_rights_of_a_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("old")
    path.chmod(0o604)
    with umask(0o022):
        write_bytes(path, b"new")
    assert mode_of(path) == 0o604 and path.read_text() == "new"


def test_a_pipe_gets_it_straight(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    require_writable("json", pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert got == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_by_its_names(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    print("before", end=" ")
    require_writable("json", name)
    write_text(name, "here")
    print("behind")
    assert capfd.readouterr().out == "before herebehind\n"


def test_a_command_writes_to_devices(capfd: pytest.CaptureFixture[str]) -> None:
    small = ["simulate", "--model", "olmoe", "--gpus", "4", "--tokens", "8", "--routing", "uniform"]
    assert main([*small, "--json", "/dev/null"]) == 0
    capfd.readouterr()
    assert main([*small, "--json", "/dev/stdout"]) == 0
    assert json.JSONDecoder().raw_decode(capfd.readouterr().out)[0]["schema"] == "dysharp/simulate/1"
    assert main([*small, "--json", "/dev/full"]) == 2
    assert capfd.readouterr().err.endswith("error: cannot write '/dev/full': No space left on device\n")
    check_targets(("json", "/dev/null", None), ("csv", "/dev/null", None))


def test_nothing_is_left_where_it_fails(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    with pytest.raises(ConfigError, match="cannot write '.*old': No space left on device"):
        write_bytes(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["old"] and path.read_text() == "old"


def test_names_as_long_as_they_can_be(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127, os.fsdecode(b"\xff" * 200)):
        write_text(tmp_path / name, name)
        assert (tmp_path / name).exists()
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize("name", ["x" * 256, "a\0b", "none/x", "half \ud800", "folder"])
def test_what_cannot_be_written_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError) as raised:
        write_bytes(tmp_path / name, b"x")
    assert "cannot write" in str(raised.value) and str(raised.value).isprintable()
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere/x")
    for name in ("none/x", "dangling", ""):
        with pytest.raises(ConfigError, match="cannot write out='.*': it must be a file in an existing folder"):
            require_writable("out", tmp_path / name)
