"""Ray's workers: of a cluster that is started on this machine, or of one that runs already, on as many as it has.

Every item is a task of one CPU. A task depends on nothing but what it is sent, so what a lost worker did is done again
by another, and changes no result. All machines of a cluster need the same sources, which a task checks. Ray is loaded
only where it is asked for.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from dysharp_env.config import ConfigError, how_to_install
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.workers.workers import Item, Result, Workers, one_thread_each, timed

ENDS_OF_A_TASK = 5
"""Times that workers may be lost over one task: more is no accident."""
_PATIENCE_S = 10.0
_MOST_KEPT = 512  # constants that a worker remembers


class Cluster(Workers):
    """Workers of a Ray cluster."""

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        """Loads Ray and starts nothing yet.

        Args:
            workers: Tasks at a time; None: as many as this machine, or the cluster at ``address``, has CPUs.
            address: Of a cluster that runs, as ``ray.init`` takes it; None uses the one that this process is connected
                to already, or else starts one on this machine for as long as these workers are needed.

        Raises:
            ConfigError: Ray is not installed.
        """
        super().__init__()
        try:
            import ray
        except ImportError:
            raise ConfigError(f"engine=ray needs Ray: {how_to_install('ray', 'dist')}") from None
        self._ray: Any = ray
        self._workers, self._address = workers, address
        self._is_mine = False
        self._kept: dict[int, tuple[object, Any]] = {}  # by id: a constant, and Ray's reference to it

    def close(self) -> None:
        """Ends the cluster or the connection that was begun here."""
        self._kept.clear()
        if self._is_mine:
            self._ray.shutdown()
        self._is_mine = False

    def _connect(self) -> None:
        """Starts or finds a cluster where there is no connection to one.

        Raises:
            ConfigError: None answers at the address.
        """
        if self._address is not None:
            _require_answer(self._address)
        ensure_compiled()
        if self._ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            settings |= {"num_cpus": self._workers or len(os.sched_getaffinity(0)), "include_dashboard": False}
            _give_token()
        try:
            with one_thread_each():
                self._ray.init(address=self._address or "local", **settings)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"address='{self._address}': no Ray cluster can be used there: {reason}") from None
        self._is_mine = True

    def _ends(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        order: Sequence[int],
        constants: Sequence[object],
    ) -> Iterator[tuple[int, Result]]:
        self._connect()
        ray = self._ray
        for constant in constants:
            if id(constant) not in self._kept:
                self._kept[id(constant)] = (constant, ray.put(pickle.dumps(constant)))
        if self._workers is not None and self._address is not None:
            at_once = self._workers  # of somebody's cluster no more is taken than was asked for
        else:
            at_once = 2 * int(ray.cluster_resources().get("CPU", 1))  # so that no CPU is idle while a task is sent
        task = ray.remote(num_cpus=1, max_retries=ENDS_OF_A_TASK - 1)(work)
        places, running = iter(order), dict[Any, int]()
        # After a mistake what runs is left to end, and counts no more: a check of Ray's ends this process where a task
        # that is cancelled (``ray.cancel``) ends at that moment.
        while True:
            for place in islice(places, at_once - len(running)):
                running[task.remote(*self._packed(function, items[place]))] = place
            if not running:
                return
            for reference in ray.wait(list(running))[0]:
                result, seconds = self._result(reference)
                self.elsewhere_s += seconds
                yield running.pop(reference), result

    def _packed(self, function: Callable[[Item], Result], item: Item) -> tuple[object, ...]:
        """Returns what ``work`` is called with: bytes in which constants are names, the names, and references."""
        pickler = _Pickler(self._kept)
        pickler.dump((function, item))
        names = tuple(reference.hex() for reference in pickler.used.values())
        return (sources(), pickler.file.getvalue(), names, *pickler.used.values())

    def _result(self, reference: object) -> tuple[Any, float]:
        """Returns a task's result and processor seconds.

        Raises:
            ConfigError: The task raised it, or one worker after the other was lost over it.
        """
        errors = self._ray.exceptions
        try:
            return pickle.loads(self._ray.get(reference))
        except errors.RayTaskError as error:
            if isinstance(error.cause, ConfigError | MemoryError):
                raise error.cause from None
            raise
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError):
            raise ConfigError(
                f"engine=ray: {ENDS_OF_A_TASK} workers ended early over one task, most likely for want of memory; use"
                " fewer at a time"
            ) from None


class _Pickler(pickle.Pickler):
    """Writes the name of an object that is kept, by its id, in place of the object.

    Attributes:
        file: Where it writes.
        used: References to those that it met, by their ids.
    """

    def __init__(self, kept: dict[int, tuple[object, Any]]) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, pickle.HIGHEST_PROTOCOL)
        self._kept = kept
        self.used: dict[int, Any] = {}

    def persistent_id(self, value: object) -> str | None:
        """Returns the name of an object that is kept; None has it written."""
        if id(value) not in self._kept:
            return None
        self.used[id(value)] = self._kept[id(value)][1]
        return str(self.used[id(value)].hex())


_constants: dict[str, object] = {}  # of this worker, by name


class _Unpickler(pickle.Unpickler):
    """Reads what ``_Pickler`` wrote."""

    def persistent_load(self, name: str) -> object:
        """Returns a constant."""
        return _constants[name]


def work(expected: str, packed: bytes, names: Sequence[str], *constants: bytes) -> bytes:
    """Runs in a worker: returns a function's result for an item and the processor seconds that it took, pickled.

    Args:
        expected: What ``sources`` must be here.
        packed: Function and item, in which constants are names.
        names: Of the constants that are in it.
        *constants: The same, pickled.

    Raises:
        ConfigError: This machine has other sources than the one that sent the task.
    """
    if sources() != expected:
        raise ConfigError("engine=ray: a machine of the cluster has another dysharp_env; install this one on all")
    for name, constant in zip(names, constants, strict=True):
        if name not in _constants:
            _constants[name] = pickle.loads(constant)
    function, item = _Unpickler(io.BytesIO(packed)).load()
    while len(_constants) > _MOST_KEPT:
        del _constants[next(iter(_constants))]
    return pickle.dumps(timed(function, item))


@lru_cache(maxsize=1)
def sources() -> str:
    """Returns a digest of the package's files, whose times and bytes all results hang on."""
    root = Path(__file__).resolve().parents[1]
    digest = sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _give_token() -> None:
    """Gives Ray the secret of a cluster to be started, where it cannot keep one in the user's home itself."""
    is_given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not is_given and not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _require_answer(address: str) -> None:
    """Checks that something listens at HOST:PORT or ray://HOST:PORT: Ray itself would ask for many minutes.

    Raises:
        ConfigError: Nothing does.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return  # a word such as auto
    try:
        socket.create_connection((host, int(port)), _PATIENCE_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"address='{address}': no Ray cluster answers there: {error}") from None
