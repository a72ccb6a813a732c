"""``python -m tests.fuzz --minutes 10 --parser NAME``: changes whole files at random until a parser falls over.

A parser reads a file, or says in one line what is wrong with it. Anything else is a find: another exception, more than
a few seconds of processor time, more than a gigabyte, a process that ends or hangs. Finds are kept as files, with the
seed that makes them again, and counts are printed and stored.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from dysharp_env.config import ConfigError
from tests.corpus.cases import JSON, YAML
from tests.corpus.claims import NPY
from tests.corpus.parsers import PARSERS, Parser

MOST_S, MOST_MB = 5.0, 1024
# Of wall time without a sign of life, after which a process is ended; on a busy machine it takes long to begin.
_GIVE_UP_S, _BEGINS_S = 120.0, 900.0
_FOLDER = Path("build") / "fuzz"
Change = Callable[[bytes, random.Random], bytes]

_NUMBERS = [0, 1, -1, 2, 7, 63, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(10**9)]
_ODD: list[Any] = [
    *_NUMBERS,
    *(0.0, -0.0, 0.5, 1e-300, 1e300, float("inf"), float("nan"), True, False, None, "", "x", "\x1b[2J", "é🙂", "1e3"),
    *([], {}, [[]], [1, [2]], {"a": 1}, [None] * 5, "x" * 5000, [0] * 5000, "/dev/zero", "a\nb", "\ud800"),
]
_TOKENS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"'",
    b":",
    b",",
    b"\n",
    b"\r\n",
    b"\t",
    b"\0",
    b"-",
    b"&a ",
    b"*a",
    b"!!str ",
    b"<<: ",
]
_TOKENS += [b"9" * 400, b"1e999", b"nan", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"null", b"~", b"---\n", b"#"]


class TooLongError(Exception):
    """A parser takes too long."""


def changed(whole: bytes, random_: random.Random) -> bytes:
    """Returns bytes of which a few are others, are gone, are there twice, or are not where they were."""
    data = bytearray(whole)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        at = random_.randrange(len(data) + 1)
        other = random_.randrange(len(data) + 1)
        match random_.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << random_.randrange(8)
            case 1 if data:
                data[at % len(data)] = random_.randrange(256)
            case 2:
                first, end = (
                    (min(at, other), max(at, other)) if random_.random() < 0.2 else (at, at + random_.randrange(9))
                )
                del data[first:end]
            case 3:
                data[at:at] = data[min(at, other) : max(at, other)][:4096]
            case 4:
                data[at:at] = random_.choice(_TOKENS)
            case 5:
                del data[at:]
            case 6:
                number = random_.choice(_NUMBERS) & (2**64 - 1)
                packed = struct.pack(random_.choice(("<Q", ">Q")), number)[: random_.choice((1, 2, 4, 8))]
                data[at : at + len(packed)] = packed
            case _:
                digits = str(random_.choice(_NUMBERS)).encode()
                data[at : at + random_.randrange(4)] = digits
    return bytes(data)


def of_values(held: Any, random_: random.Random) -> Any:
    """Returns values of which one, somewhere inside, is another, is gone, or is there again under another name."""
    if isinstance(held, dict) and held and random_.random() < 0.9:
        key = random_.choice([*held])
        if (turn := random_.random()) < 0.1:
            return {name: value for name, value in held.items() if name != key}
        if turn < 0.2:
            return {**held, random_.choice(("x", "\x1b", key + " ", "") if isinstance(key, str) else ("x",)): held[key]}
        return {**held, key: of_values(held[key], random_)}
    if isinstance(held, list) and held and random_.random() < 0.9:
        place = random_.randrange(len(held))
        if (turn := random_.random()) < 0.1:
            return held[:place] + held[place + 1 :]
        if turn < 0.2:
            return held + held[: place + 1]
        return [*held[:place], of_values(held[place], random_), *held[place + 1 :]]
    return random_.choice(_ODD)


def of_json(whole: bytes, random_: random.Random) -> bytes:
    """Returns JSON, or lines of it, with another value somewhere."""
    lines = whole.splitlines() if whole.count(b"\n{") else [whole]
    place = random_.randrange(len(lines))
    lines[place] = json.dumps(of_values(json.loads(lines[place]), random_)).encode()
    return b"\n".join(lines)


def of_yaml(whole: bytes, random_: random.Random) -> bytes:
    """Returns YAML with another value somewhere."""
    held = of_values(yaml.safe_load(whole), random_)
    return yaml.safe_dump(held, allow_unicode=True).encode("utf-8", "surrogatepass")


def of_cells(whole: bytes, random_: random.Random) -> bytes:
    """Returns CSV with another cell somewhere."""
    rows = [line.split(b",") for line in whole.splitlines()]
    row = random_.choice(rows)
    odd = str(random_.choice(_ODD)).encode("utf-8", "surrogatepass")
    row[random_.randrange(len(row))] = random_.choice((odd, b'"', b'"a\nb"', b"", b"\0", b"9" * 5000))
    return b"\n".join(b",".join(each) for each in rows)


def of_header(whole: bytes, random_: random.Random) -> bytes:
    """Returns safetensors whose header has another value somewhere."""
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.dumps(of_values(json.loads(whole[8 : 8 + size]), random_)).encode()
    return struct.pack("<Q", len(header)) + header + whole[8 + size :]


def of_members(whole: bytes, random_: random.Random) -> bytes:
    """Returns a zip archive with one member changed, renamed, gone, or that of another file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        held = [(each.filename, archive.read(each), each.compress_type) for each in archive.infolist()]
    place = random_.randrange(len(held))
    name, content, packing = held[place]
    match random_.randrange(5):
        case 0:
            held[place] = random_.choice((name + "x", "../" + name, "\x1b.npy")), content, packing
        case 1:
            held[place] = name, random_.choice([*NPY.values()]), packing
        case 2 if content.startswith(b"\x93NUMPY"):
            held[place] = name, of_npy(content, random_), packing
        case _:
            held[place] = name, changed(content, random_), packing
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content, packing in held:
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return stream.getvalue()


def of_npy(whole: bytes, random_: random.Random) -> bytes:
    """Returns an array whose header says another shape or type, or whose numbers are others."""
    size = 10 + struct.unpack("<H", whole[8:10])[0]
    header, data = whole[10:size], whole[size:]
    if random_.random() < 0.5:
        dtype = random_.choice(
            (b"<i8", b"<u8", b"<f8", b"|i1", b"<f2", b"|b1", b"|O", b"<U9", b"<c8", b">i2", b"|S4", b"<m8")
        )
        header = header.replace(header.split(b"'descr': '")[1].split(b"'")[0], dtype, 1)
    if random_.random() < 0.5:
        shape = tuple(random_.choice((0, 1, 2, 4, 8, 64, 2**31, 2**63, -1)) for _ in range(random_.randrange(5)))
        header = header.split(b"'shape': ")[0] + f"'shape': {shape}, }}\n".encode()
    if random_.random() < 0.5:
        data = changed(data, random_)
    return whole[:8] + struct.pack("<H", len(header)) + header + data


def _packed(change: Change) -> Change:
    """Returns what changes what is inside a gzip file."""
    return lambda whole, random_: gzip.compress(change(gzip.decompress(whole), random_), 1)


def _texts(texts: dict[str, str]) -> Change:
    """Returns what takes one of the corpus's texts, and changes it too."""
    small = [text.encode("utf-8", "surrogatepass") for text in texts.values() if len(text) < 5000]
    return lambda _, random_: changed(random_.choice(small), random_)


_BY_ENDING: dict[str, list[Change]] = {
    ".json.gz": [_packed(of_json), _packed(of_json), _packed(changed)],
    ".csv.gz": [_packed(of_cells), _packed(changed)],
    ".yaml": [of_yaml, of_yaml, of_yaml, _texts(YAML)],
    ".json": [of_json, of_json, of_json, _texts(JSON)],
    ".jsonl": [of_json, of_json, of_json],
    ".csv": [of_cells, of_cells],
    ".npz": [of_members, of_members, of_members],
    ".pt": [of_members],
    ".npy": [of_npy, of_npy],
    ".safetensors": [of_header, of_header],
}


def changes_of(parser: Parser) -> list[Change]:
    """Returns the ways in which whole files of a parser are changed."""
    return [changed, *next((found for ending, found in _BY_ENDING.items() if parser.file.endswith(ending)), [])]


def mutant(parser: Parser, wholes: list[bytes], seed: int) -> bytes:
    """Returns the file of a seed."""
    random_ = random.Random(seed)
    data = random_.choice(wholes)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        try:
            data = random_.choice(changes_of(parser))(data, random_)
        except (
            ValueError,
            TypeError,
            OverflowError,
            RuntimeError,
            OSError,
            EOFError,
            IndexError,
            KeyError,
            struct.error,
            zlib.error,
            zipfile.BadZipFile,
            yaml.YAMLError,
        ):
            data = changed(data, random_)
    return data


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends what takes more processor time."""

    def over(*_: Any) -> None:
        raise TooLongError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def find_of(parser: Parser, path: Path) -> str | None:
    """Returns how a parser falls over a file, and where; None if it reads it; an empty text if it refuses it."""
    try:
        with limited(MOST_S), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            parser.read(path)
    except ConfigError as error:
        text = str(error)
        return "" if text and text.isprintable() and len(text) <= 4000 else f"a message that is no line: {text!a:.200}"
    except MemoryError:
        return "MemoryError"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        ours = next(
            (each for each in reversed(frames) if "dysharp_env" in each.filename or "agents" in each.filename), None
        )
        place = f"{Path(ours.filename).name}:{ours.lineno}" if ours else "?"
        return f"{type(error).__name__} at {place}: {str(error)[:160]!a}"
    return None


def fuzz_here(parser: Parser, seconds: float, seed: int, folder: Path, kept: Path) -> None:
    """Reads changed files one after the other in this process, and prints counts as JSON once a second."""
    parser.beside(folder)
    path = folder / parser.file
    path.parent.mkdir(exist_ok=True)
    wholes = [parser.whole()]
    path.write_bytes(wholes[0])
    if (wrong := find_of(parser, path)) is not None:
        raise SystemExit(f"{parser.name}: what is whole is not read: {wrong or 'refused'}")
    counts: Counter[str] = Counter()
    finds: dict[str, int] = {}
    base_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end_s = time.monotonic() + seconds
    told_s = 0.0
    while time.monotonic() < end_s:
        path.write_bytes(mutant(parser, wholes, seed))
        found = find_of(parser, path)
        counts["files"] += 1
        counts["read" if found is None else "refused" if not found else "found"] += 1
        more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base_kb) >> 10
        if not found and more_mb > MOST_MB:
            found, base_kb = f"{more_mb} MB", base_kb + (more_mb << 10)
        if found and found not in finds:
            finds[found] = seed
            (kept / f"{parser.file.replace('/', '-')}.{seed}").write_bytes(path.read_bytes())
        seed += 1
        if time.monotonic() - told_s > 1:
            told_s = time.monotonic()
            _tell(parser, counts, finds, more_mb, seed)
    _tell(parser, counts, finds, more_mb, seed)


def _tell(parser: Parser, counts: Counter[str], finds: dict[str, int], more_mb: int, seed: int) -> None:
    told = {"parser": parser.name, **counts, "mb": more_mb, "next_seed": seed, "finds": finds}
    print(json.dumps(told), flush=True)


def fuzz(parser: Parser, minutes: float, seed: int) -> dict[str, Any]:
    """Returns the counts of a parser, whose files are read in a process that may end or hang: then another goes on."""
    kept = _FOLDER / parser.name.replace(" ", "-")
    kept.mkdir(parents=True, exist_ok=True)
    total: Counter[str] = Counter()
    finds: dict[str, int] = {}
    end_s = time.monotonic() + 60 * minutes
    while (left_s := end_s - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory() as folder:
            argv = ["--child", folder, "--parser", parser.name, "--minutes", str(left_s / 60), "--seed", str(seed)]
            last, ended = _watched([sys.executable, "-m", "tests.fuzz", *argv], left_s)
        if not last:
            finds[f"no file was read: {ended}"] = seed
            break
        total.update({name: last.get(name, 0) for name in ("files", "read", "refused", "found")})
        total["mb"] = max(total["mb"], last["mb"])
        finds |= last["finds"]
        seed = last["next_seed"]
        if ended:
            finds[ended] = seed
            seed += 1000
    return {"parser": parser.name, "minutes": minutes, "mb": 0, **total, "finds": finds}


def _watched(argv: list[str], seconds: float) -> tuple[dict[str, Any], str]:
    """Returns the last counts that a process has told, and how it ended if that was not well."""
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=err, text=True)
        timer = signal.SIGALRM
        lines: list[str] = []

        def over(*_: Any) -> None:
            process.kill()

        signal.signal(timer, over)
        assert process.stdout is not None
        signal.alarm(int(_BEGINS_S))
        for line in process.stdout:
            lines = [line]
            signal.alarm(int(_GIVE_UP_S))
        signal.alarm(0)
        status = process.wait()
        err.seek(0)
        said = err.read().decode(errors="replace").strip().splitlines()
    last = json.loads(lines[0]) if lines else {}
    return last, "" if not status else f"process ended with {status}: {said[-1] if said else ''}"


def main(argv: list[str] | None = None) -> int:
    """Fuzzes one parser or all, prints and stores counts, and returns 1 if there were finds."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="wall time of each parser")
    parser.add_argument("--parser", default="all", choices=["all", *PARSERS], help="whose files")
    parser.add_argument("--seed", type=int, default=0, help="of the first file; each has the next one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        kept = _FOLDER / args.parser.replace(" ", "-")
        fuzz_here(PARSERS[args.parser], 60 * args.minutes, args.seed, Path(args.child), kept)
        return 0
    results = []
    for name in PARSERS if args.parser == "all" else [args.parser]:
        results.append(result := fuzz(PARSERS[name], args.minutes, args.seed))
        counts = ", ".join(f"{result.get(key, 0)} {key}" for key in ("files", "read", "refused", "found"))
        print(f"{name}: {counts}, at most {result['mb']} MB more, {len(result['finds'])} kinds of finds", flush=True)
        for find, seed in result["finds"].items():
            print(f"  seed {seed}: {find}", flush=True)
        (_FOLDER / "counts.json").write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any(result["finds"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
