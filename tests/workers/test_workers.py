"""Workers: order, errors, lost workers, and what is sent once, with processes and a local Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dysharp_env.__main__ import main
from dysharp_env.config import ConfigError, how_to_install
from dysharp_env.workers import Processes, Threads, Workers, cluster
from dysharp_env.workers.cluster import Cluster


class Constant:
    """Something large: it counts how often it is unpickled in a process."""

    loads = 0

    def __init__(self, value: int) -> None:
        self.value = value

    def __setstate__(self, state: dict[str, int]) -> None:
        Constant.loads += 1
        self.__dict__.update(state)


def double(number: int) -> int:
    return 2 * number


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise ConfigError(f"number={number} is bad")
    return number


def end_process_once(folder: Path, number: int) -> int:
    """Ends the worker that is the first to come to the number 3."""
    marker = folder / "ended"
    if number == 3 and not marker.exists():
        marker.touch()
        os._exit(1)
    return 10 * number


def end_process(_: int) -> int:
    os._exit(1)


def where_and_how(_: int) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS")


def loads_of(item: tuple[Constant, int]) -> tuple[int, int, int]:
    constant, number = item
    return os.getpid(), constant.value + number, Constant.loads


@pytest.fixture(scope="module", params=["here", "threads", "processes", "ray"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    made = {"here": Workers, "threads": partial(Threads, 2), "processes": partial(Processes, 2)}
    with made.get(request.param, partial(Cluster, 2))() as opened:
        yield opened


def test_results_come_in_the_order_of_their_items(workers: Workers) -> None:
    told = list[tuple[int, int]]()
    numbers = [5, 1, 4, 2, 3]
    found = workers.map(double, numbers, size=double, tell=lambda done, place, _: told.append((done, place)))
    assert found == [10, 2, 8, 4, 6]
    assert [done for done, _ in told] == [1, 2, 3, 4, 5] and {place for _, place in told} == {0, 1, 2, 3, 4}
    assert workers.map(double, []) == []


def test_a_mistake_comes_back_as_it_was_and_work_goes_on(workers: Workers) -> None:
    with pytest.raises(ConfigError, match=r"^number=7 is bad$"):
        workers.map(partial(fail_at, 7), range(9))
    assert workers.map(double, [1, 2]) == [2, 4]


def test_others_have_one_numerical_thread(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    found = workers.map(where_and_how, range(4))
    if isinstance(workers, Processes | Cluster):
        assert {threads for _, threads in found} == {"1"}
        assert os.getpid() not in {process for process, _ in found}
        assert workers.elsewhere_s > 0
    assert workers.cpu_s > 0


def test_processes_end_with_the_one_that_started_them() -> None:
    program = """
import time
from dysharp_env.workers import Processes
from tests.workers.test_workers import where_and_how
if __name__ == "__main__":
    with Processes(2) as workers:
        print(*{process for process, _ in workers.map(where_and_how, [*range(20)])}, flush=True)
        time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout is not None
        workers = [Path(f"/proc/{pid}") for pid in parent.stdout.readline().split()]
        assert workers and all(process.exists() for process in workers)
        parent.kill()
    deadline = time.monotonic() + 20
    while any(process.exists() for process in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(process.exists() for process in workers)


def test_a_constant_is_loaded_once_by_each_of_rays_workers(ray_cluster: None) -> None:
    constants = [Constant(100), Constant(200)]
    items = [(constant, number) for number in range(10) for constant in constants]
    with Cluster(2) as cluster:
        for _ in range(2):  # the second call sends none of them again
            found = cluster.map(loads_of, items, constants=constants)
            assert [value for _, value, _ in found] == [constant.value + number for constant, number in items]
            assert max(loads for _, _, loads in found) <= len(constants)


def test_a_lost_worker_of_ray_changes_no_result(ray_cluster: None, tmp_path: Path) -> None:
    with Cluster(2) as cluster:
        assert cluster.map(partial(end_process_once, tmp_path), range(8)) == [10 * number for number in range(8)]
    assert (tmp_path / "ended").exists()


def test_a_task_that_ends_every_worker_is_given_up(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysharp_env.workers.cluster.ENDS_OF_A_TASK", 2)
    with Cluster(2) as cluster, pytest.raises(ConfigError, match="^engine=ray: 2 workers ended early over one task"):
        cluster.map(end_process, [0])


def test_ray_needs_no_home_to_keep_a_secret_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is afterwards as it was before
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster._give_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    cluster._give_token()
    token = os.environ["RAY_AUTH_TOKEN"]
    cluster._give_token()
    assert len(token) == 64 and os.environ["RAY_AUTH_TOKEN"] == token


def test_other_sources_are_refused(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysharp_env.workers.cluster.sources", lambda: "of another version")
    with Cluster(2) as cluster, pytest.raises(ConfigError, match="a machine of the cluster has another dysharp_env"):
        cluster.map(double, [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "auto"], "address='auto' is of a Ray cluster; it needs --engine ray"),
        (["--engine", "ray", "--workers", "0"], "workers=0 must be 1 to "),
        (["--engine", "ray", "--workers", "0", "--address", "auto"], "workers=0 must be at least 1"),
        (["--engine", "dask"], "argument --engine: invalid choice: 'dask'"),
    ],
)
def test_mistakes_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_without_ray_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["reproduce", "--engine", "ray"]) == 2
    assert capsys.readouterr().err == f"error: engine=ray needs Ray: {how_to_install('ray', 'dist')}\n"


def test_an_address_at_which_nobody_answers_is_named() -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"^address='127.0.0.1:9': no Ray cluster answers there: "):
        Cluster(2, "127.0.0.1:9")._connect()
