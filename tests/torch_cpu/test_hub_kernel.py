"""Packages for the hub run kernels without natc, and several in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from support.c_library import HEAD_DIM, KERNEL_SIZE, SPECS, LibraryDirectory
from support.library_files import make_manifest

import natc
from natc.checks.inputs import make_inputs
from natc.package import hub
from natc.package.contents import library_files
from natc.package.pieces import Piece, read_pieces
from natc.spec import KernelSpec
from natc.store.manifest import LibraryTarget

# Loads packages as `kernels` does, as if nothing that natc needs but torch and tvm_ffi were there.
PROGRAM = """
import importlib.util, sys, warnings
for name in ("natc", "msgspec", "platformdirs", "packaging", "tvm"):
    sys.modules[name] = None
import torch, tvm_ffi
from pathlib import Path

def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

folder = Path(sys.argv[1])
first, second = folder / "1" / "cpu", folder / "2" / "cpu"
packages = [
    load("first", first / "__init__.py"),
    load("second", second / "__init__.py"),
    load("older_kernels", second / "natc_kernels" / "__init__.py"),
]
query, key, value, rpb, expected = torch.load(folder / "inputs.pt")
query.requires_grad_()
warnings.simplefilter("error")
for package in packages:
    assert torch.equal(package.na2d(query, key, value, 3, rpb=rpb), expected), package
compiled = torch.compile(packages[0].na2d, backend="aot_eager", fullgraph=True)
output = compiled(query, key, value, 3, rpb=rpb)
assert torch.equal(output, expected)
for path, calls in ((first, 2), (second, 2)):
    (library,) = (path / "lib").glob("*.so")
    assert tvm_ffi.load_module(str(library))["calls"]() == calls
# A call that no library covers runs on the reference; nothing is built.
with warnings.catch_warnings(record=True, action="always") as warned:
    output.sum().backward()
    packages[1].na2d(query, key, value, 5)
assert query.grad.abs().sum() > 0
for warning in warned:
    print(warning.filename, str(warning.message).splitlines()[0])
"""


def test_two_packages_run_in_one_process_without_natc(
    libraries: LibraryDirectory, tmp_path: Path
) -> None:
    libraries.add(SPECS[True])
    query, key, value, rpb = make_inputs((1, 5, 6, 2, HEAD_DIM), kernel_size=KERNEL_SIZE)
    expected = natc.na2d(query, key, value, KERNEL_SIZE, rpb=rpb)
    torch.save((query, key, value, rpb, expected), tmp_path / "inputs.pt")
    pieces = read_pieces(libraries.path, 0)
    for number in ("1", "2"):
        repository = tmp_path / number / "natc-kernels"
        variant = hub.write_variant(
            repository, "tvm-ffi01-cpu-x86_64-linux", pieces, library_files(pieces, "a"), version=1
        )
        variant.rename(tmp_path / number / "cpu")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=tmp_path, env={"NATC_JIT": "on"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    delta, forward = done.stdout.splitlines()
    assert "no kernel covers delta of na2d_k3_d8_float32_rpb" in delta
    assert forward.startswith("<string> no kernel covers na2d_k5_d8_float32 on cpu")
    assert forward.endswith(f"this package runs the libraries in {tmp_path}/2/cpu/lib alone")


@pytest.mark.parametrize(("ptx", "listed"), [("sm_90", "9.0+PTX"), ("", "9.0")])
def test_metadata_says_which_gpus_newer_ones_included(ptx: str, listed: str) -> None:
    """As `kernels` 0.17 reads it: `+PTX` is any newer GPU."""
    archs = ("sm_80", "sm_90")
    spec = KernelSpec.parse("na2d_k3_d8_float16")
    manifest = make_manifest(spec, LibraryTarget("cuda", archs), ptx=ptx)
    data = hub._metadata("natc-kernels", "natc_kernels", "tvm-ffi01-cu130-x86_64-linux",
                         [Piece(Path("lib.so"), manifest)], {"__init__.py": "x"}, 1)  # fmt: skip
    content = msgspec.json.decode(data)
    assert content["backend"] == {"type": "cuda", "archs": ["8.0", listed]}
