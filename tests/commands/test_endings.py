"""How commands end when something is wrong: one line, a status, and files as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dysharp_env.__main__ import main
from dysharp_env.commands import PIPE_CLOSED, CommandParser, output, run_main
from dysharp_env.config import ConfigError


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("simulat",), "invalid choice: 'simulat' (choose from"),
        (("simulat",), "(did you mean 'simulate'?); see 'python -m dysharp_env --help'"),
        (
            ("simulate", "--tokns", "3"),
            "unknown option --tokns (did you mean '--tokens'?); see 'python",
        ),
        (
            ("simulate", "--token=3", "--sead=4"),
            "options --token (did you mean '--tokens'?), --sead (did you me",
        ),
        (("simulate", "3"), "'3' is one argument too many; see 'python -m dysharp_env simulate --help'"),
        (("simulate", "-x"), "unknown option -x; see"),
        (("trace", "info", "--jason", "x"), "unknown option --jason (did you mean '--json'?)"),
        (("simulate", "--json", "bad.yaml", "--system", "bad.yaml"), "json='bad.yaml' is the file that system is read"),
        (("compare", "--json", "./cut.npz", "--routing", "cut.npz:a"), "json='./cut.npz' is the file that routing is"),
        (("compare", "--json", "bad.yaml", "--schedule", "bad.yaml"), "json='bad.yaml' is the file that schedule is"),
        (("compare", "--plot", "x.png"), "plot='x.png' shows a sweep; name one, such as --sweep tokens=64,256,1024"),
        (("compare", "--plot", "x.jpg"), "plot='x.jpg' must end in .png or .svg or .pdf"),
        (("compare", "--sweep", "token=1,2"), "'token' is unknown; choose from ['tokens', 'gpus', 'model']"),
        (("compare", "--sweep", "gpus=4,4"), "sweep='gpus=4,4' must be different whole numbers, such as gpus=8,16,32"),
        (("compare", "--sweep", "gpus=4,9"), "gpus=9: system 'dgx-h100' allows 2 to 8"),
        (("compare", "--sweep", "model=a,a"), "must be names of different models"),
        (("compare", "--sweep", "4", "--picture", "x.png"), "a sweep is drawn by --plot"),
        (("compare", "--hardware", "today", "--schedule", "moe-hub"), "'moe-hub' needs GPUs with a Hub"),
        (("list", "system"), "invalid choice: 'system' (choose from 'systems'"),
        (("list", "schedules", "--gpus", "9"), "gpus=9: system 'dgx-h200' allows 2 to 8"),
        (("new", "model", "m", "--out", "bad.yaml"), "out='bad.yaml' exists; name another file, or --force"),
        (("new", "model", "m", "--from", "bad.yaml", "--out", "bad.yaml", "--force"), "is the file that base is read"),
        (("new", "model", "m", "--from", "smal"), "(did you mean 'small'?)"),
        (("new", "system", "a/b"), "name='a/b' must be letters, digits"),
        (("simulate", "--tokens", "x"), "tokens='x': must be a number, a number for each GPU such as 64,0,128,96, or"),
        (("simulate", "--tokens", "-1"), "tokens=-1: must be from 1 to 1000000"),
        (("simulate", "--tokens", "0"), "tokens=0: must be from 1 to 1000000"),
        (("simulate", "--tokens", "1,2"), "tokens=[1, 2] lists 2 numbers for gpus=8"),
        (("simulate", "--tokens", "trace"), "tokens='trace' needs tokens_of_gpu in the trace; 'recorded' has none"),
        (("simulate", "--replicas", "first"), "argument --replicas: invalid choice: 'first'"),
        (
            ("simulate", "--layer-index", "1,x"),
            "layer_index='1,x': must be a number, different numbers such as 3,7, or",
        ),
        (("simulate", "--layer-index", "1,2", "--csv", "x.csv"), "csv='x.csv' shows one layer; layer_index names 2"),
        (
            ("compare", "--layer-index", "all", "--picture", "x.png", "--schedule", "nvls", "--schedule", "deepep"),
            "picture='x.png' shows one layer; layer_index names 3",
        ),
        (("simulate", "--gpus", "1"), "gpus=1: system 'dgx-h100' allows 2 to 8"),
        (("simulate", "--top-k", "99"), "top_k=99 must be at most experts=64"),
        (("simulate", "--top-k", "0"), "top_k=0: Input should be greater than or equal to 1"),
        (("simulate", "--seed", "-3"), "seed=-3 must not be negative"),
        (("simulate", "--compute-scale", "0"), "compute_scale=0.0: Input should be greater than or equal to"),
        (("simulate", "--compute-scale", "nan"), "compute_scale=nan: Input should be a finite number"),
        (("simulate", "--system", "dgxh100"), "system='dgxh100' is unknown; choose from"),
        (("simulate", "--model", "smal"), "(did you mean 'small'?)"),
        (("simulate", "--schedule", "dysharpp"), "(did you mean 'dysharp'?)"),
        (("simulate", "--schedule", "no.yaml"), "schedule file 'no.yaml' does not exist"),
        (("simulate", "--schedule", "bad.yaml"), "bad.yaml: unknown key 'chunk_token' (did you mean 'chunk_tokens'?)"),
        (("simulate", "--schedule", "nvls", "--schedule", "deepep"), "simulate runs one schedule"),
        (("simulate", "--routing", "zipf"), "routing='zipf' is unknown"),
        (("simulate", "--routing", "no.npz"), "npz file 'no.npz' does not exist"),
        (("simulate", "--routing", "cut.npz"), "'cut.npz': not a whole npz file"),
        (("simulate", "--placement", "x"), "placement='x' is unknown"),
        (("simulate", "--layer-index", "99"), "layer_index=99 is not in it"),
        (("simulate", "--split", "tests"), "argument --split: invalid choice: 'tests'"),
        (("simulate", "--routing", "uniform", "--split", "test"), "split='test' needs a trace; routing='uniform' is a"),
        (("simulate", "--schedule", "twice.yaml"), "'twice.yaml': key 'copies' on line 3 is already on line 2"),
        (("simulate", "--json", "x.json", "--timeline", "./x.json"), "timeline='./x.json' is the file that json is"),
        (("compare", "--json", "x.png", "--picture", "x.png"), "picture='x.png' is the file that json is written to"),
        (("simulate", "--dispatch-dtype", "fp4"), "invalid choice: 'fp4' (choose from 'bf16', 'fp8', 'mxfp8', "),
        (("simulate", "--json", "no/x.json"), "cannot write json='no/x.json': it must be a file in an existing folder"),
        (("simulate", "--json", "."), "cannot write json='.'"),
        (("simulate", "--timeline", "x.txt"), "timeline='x.txt' must end in .json"),
        (("simulate", "--picture", "no/x.png"), "cannot write picture='no/x.png'"),
        (("compare", "--against", "dysharpp"), "against='dysharpp' is unknown"),
        (("compare", "--schedule", "nvls", "--schedule", "nvls"), "two of the schedules are named 'nvls'"),
        (("simulate", "--report", "no/x"), "cannot write report='no/x': No such file or directory"),
        (("explain", "--schedule", "nvls", "--schedule", "nvls"), "two of the schedules are named 'nvls'"),
        (("explain", "--tokens", "0"), "tokens=0: must be from 1 to 1000000"),
        (("explain", "--schedule", "dysharpp"), "(did you mean 'dysharp'?)"),
        (("explain", "--picture", "x.jpg"), "picture='x.jpg' must end in .png or .svg or .pdf"),
        (("explain", "--json", "x.png", "--picture", "x.png"), "picture='x.png' is the file that json is written to"),
        (("validate", "--seed", "-1"), "seed=-1 must not be negative"),
        (("validate", "--json", "no/x.json"), "cannot write json='no/x.json'"),
        (("trace", "info", "no.npz"), "npz file 'no.npz' does not exist"),
    ],
)
def test_mistakes_give_one_line_and_status_2(
    argv: tuple[Any, ...], message: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dysharp_env.config import config_root

    deepep = (config_root() / "schedules" / "deepep.yaml").read_text()
    (empty_folder / "bad.yaml").write_text(deepep + "\nchunk_token: 4\n")
    (empty_folder / "twice.yaml").write_text("name: twice\ncopies: gpu\ncopies: expert\n" + deepep)
    (empty_folder / "cut.npz").write_bytes(b"PK\x03\x04 half a zip")
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert sorted(os.listdir()) == ["bad.yaml", "cut.npz", "twice.yaml"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(empty_folder: Path, full_disk: None) -> None:
    target = empty_folder / "r.json"
    target.write_text("old")
    with pytest.raises(ConfigError, match="^cannot write 'r.json': No space left on device$"):
        output.write_json("r.json", {"new": 1})
    assert os.listdir() == ["r.json"] and target.read_text() == "old"


def test_not_a_number_is_never_written(empty_folder: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        output.write_json("r.json", {"ratio": float("nan")})
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 2, "error: not enough memory for a layer of this size; use fewer --tokens or --gpus\n"),
        (ConfigError("two\nlines"), 2, "error: two lines\n"),
    ],
)
def test_run_main_ends_quietly(
    failure: ConfigError | Any, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def build_parser() -> Any:
        def fail(args: Any) -> None:
            raise failure

        parser = CommandParser()
        parser.set_defaults(run=fail)
        return parser

    assert run_main(build_parser, []) == status
    assert capsys.readouterr().err == line


def test_a_closed_pipe_is_not_an_error() -> None:
    code = "import sys; from dysharp_env.commands import *; p = CommandParser();"
    code += "p.set_defaults(run=lambda args: print('x' * 10**6) or 0); sys.exit(run_main(lambda: p, []))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == PIPE_CLOSED
