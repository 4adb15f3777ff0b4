"""Bad input: exit status 2, one line on stderr that helps, nothing on stdout, no traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.command_line import Natc
from support.fresh_process import run_fresh

pytestmark = pytest.mark.quick

BAD = [
    (["tune", "--kernel", "0"], ["kernel_size 0", "1 to 63"]),
    (["build", "--kernel", "64"], ["kernel_size 64", "1 to 63"]),
    (["bench", "--kernel", "seven"], ["'seven'", "such as 7"]),
    (["tune", "--kernel", "7", "--head-dim", "300"], ["head_dim is 300", "1 to 256"]),
    (["tune", "--kernel", "7", "--target", "opencl"], ["'opencl'", "llvm, cuda"]),
    (["build", "--kernel", "7", "--target", "cuda", "--arch", "sm_12"], ["'sm_12'", "sm_90"]),
    (["build", "--kernel", "7", "--target", "cuda", "--arch", ","], ["no architecture"]),
    (["build", "--kernel", "7", "--target", "llvm", "--arch", "sm_90"], ["'sm_90'", "x86-64-v2"]),
    (["build", "--kernel", "7", "--target", "cuda"], ["no NVIDIA GPU", "--arch"]),
    (["tune", "--kernel", "7", "--rank", "4"], ["rank is 4", "1, 2 or 3"]),
    (["measure", "no-such-directory"], ["no-such-directory", "natc tune", "--export"]),
    (["tune", "--import", "no-such-directory"], ["no-such-directory", "no candidates"]),
    (["tune", "--kernel", "7", "--import", "x"], ["--import takes no --kernel"]),
    (["tune", "--kernel", "7", "--operations", "dance"], ["'dance'", "forward, backward"]),
    (["tune", "--kernel", "7x5x3", "--shape", "1x9x9x2"], ["'1x9x9x2'", "depth"]),
    (["tune", "--kernel", "7", "--dtype", "float64"], ["float64", "float32, float16, bfloat16"]),
    (["bench", "--kernel", "7x5x3", "--shape", "1x9x9x2"], ["'1x9x9x2'", "depth"]),
    (["build", "--kernel", "7", "--rank", "4"], ["rank is 4", "1, 2 or 3"]),
    (["build", "--kernel", "7", "--value-dim", "300"], ["value_dim is 300", "1 to 256"]),
    (["build", "--kernel", "7", "--operations", "forward,tune"], ["'tune'", "backward, unfused"]),
    (["build", "--kernel", "7", "--operations", ""], ["operations has ''"]),
    (
        ["build", "--kernel", "7", "--value-dim", "8", "--operations", "unfused"],
        ["value_dim is 8", "head_dim 32"],
    ),
    (
        ["build", "-k", "7", "--dtype", "float64", "--target", "cuda", "--arch", "sm_90"],
        ["dtype is float64", "float32, float16, bfloat16", "natc.reference"],
    ),
    (["tune", "--kernel", "7x5", "--rank", "1"], ["kernel_size", "1 integers"]),
    (["tune", "--kernel", "7", "--shape", "56x56"], ["'56x56'", "1x56x56x2"]),
    (["tune", "--kernel", "7", "--shape", "0x56x56x2"], ["'0x56x56x2'"]),
    (["bench", "--device", "cuda"], ["torch sees no GPU"]),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=lambda value: " ".join(value))
def test_bad_input_is_refused_in_a_line(natc: Natc, words: list[str], expected: list[str]) -> None:
    if words[-1] == "cuda" and words[0] == "bench":
        import torch

        if torch.cuda.is_available():
            pytest.skip("torch sees a GPU here")
    code, out, err = natc(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("natc: error: ") and err.count("\n") == 1
    for word in expected:
        assert word in err


@pytest.mark.parametrize(
    "words",
    [
        ["build"],
        ["tune"],
        ["dance"],
        ["tune", "--kernel", "7", "--dtype", "float8"],
        ["tune", "--kernel", "7", "--minutes", "0"],
        ["tune", "--kernel", "7", "--trials", "0"],
        ["tune", "--kernel", "7", "--trials", "many"],
        ["tune", "--kernel", "7", "--seed", "-1"],
        ["list", "--all"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_refused(natc: Natc, words: list[str]) -> None:
    code, out, err = natc(*words)
    assert (code, out) == (2, "")
    assert "Usage: natc" in err and "Traceback" not in err


def test_tuning_for_cuda_without_a_gpu(natc: Natc) -> None:
    code, out, err = natc("tune", "--kernel", "7x5", "--target", "cuda", "--arch", "sm_100")
    assert (code, out) == (2, "")
    assert "no NVIDIA GPU" in err
    assert "natc build --kernel 7x5 --target cuda --arch sm_100" in err
    # A wrong architecture is the first thing to say.
    assert "'sm_12'" in natc("tune", "--kernel", "7", "--target", "cuda", "--arch", "sm_12").err
    assert "--arch sm_80" in natc("tune", "--kernel", "7", "--target", "cuda-sm_80").err


def test_it_says_so_before_loading_the_compiler() -> None:
    program = """
import sys
from natc.host import gpu
from natc.cli.main import main
gpu.driver = lambda: gpu.Driver(None, ())
sys.argv = ["natc", "tune", "--kernel", "7", "--target", "cuda"]
try:
    main()
except SystemExit as stop:
    print(stop.code, sorted({"tvm", "torch"} & set(sys.modules)))
"""
    assert run_fresh(program) == "2 []\n"


def test_tuning_for_a_newer_cpu_is_refused(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    from natc.cli.verbs import tune
    from natc.targets import Target

    monkeypatch.setattr(tune, "detect_host_cpu", lambda: Target("llvm", "x86-64-v3"))
    code, _, err = natc("tune", "--kernel", "7", "--target", "llvm-x86-64-v4")
    assert code == 2
    assert "llvm-x86-64-v4 does not run on this machine, which is llvm-x86-64-v3" in err


@pytest.mark.parametrize("verb", ["tune", "build"])
def test_missing_compiler_extra(natc: Natc, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = natc(verb, "--kernel", "7")
    assert (code, out) == (1, "")
    assert f"natc {verb} needs the compiler" in err
    assert "pip install 'natc[compiler]'" in err


@pytest.mark.parametrize("verb", ["tune", "build"])
def test_crashing_versions_refused(natc: Natc, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    from natc.host import environment

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    versions = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.15.post2"}
    monkeypatch.setattr(environment, "version_of", versions.get)
    code, _, err = natc(verb, "--kernel", "7")
    assert code == 1
    assert "apache-tvm 0.27.0.post1 crashes with apache-tvm-ffi 0.1.15.post2" in err


def test_the_version(natc: Natc) -> None:
    import natc as package

    assert natc("--version") == (0, f"natc {package.__version__}\n", "")


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "natc", "tune", "--kernel", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("natc: error: kernel_size 0")
