"""The probe of a CPU's rates: it runs with a C compiler and without, and says which."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from natc.bench import peak

pytestmark = pytest.mark.quick


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget earlier probes, and copy little."""
    monkeypatch.setattr(peak, "_COPY_BYTES", 2**20)
    peak.open_probe.cache_clear()
    peak._buffers.cache_clear()
    yield
    peak.open_probe.cache_clear()
    peak._buffers.cache_clear()


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_rate_is_measured(dtype: str) -> None:
    threads = torch.get_num_threads()
    rates = peak.measure(dtype, seconds=0.01)
    names = {
        f"{dtype}, 1 thread" if count == 1 else f"{dtype}, {count} threads"
        for count in (threads, 1)
    }
    assert set(rates.operations_per_second) == names
    assert min(rates.bytes_per_second, *rates.operations_per_second.values()) > 0
    assert rates.lower_bound == rates.method.startswith("torch.mm")


@pytest.mark.usefixtures("_fresh")
def test_registers_hold_half_as_many_float64() -> None:
    single, double = (peak.open_probe(dtype) for dtype in ("float32", "float64"))
    if single.lower_bound:
        pytest.skip("there is no C compiler")
    numbers = [int(probe.method.split()[2]) for probe in (single, double)]
    assert numbers[0] == 2 * numbers[1]


@pytest.mark.usefixtures("_fresh")
def test_copies_copy() -> None:
    for number in range(2):
        peak._buffers(number)[1].fill_(7 + number)
    assert peak.open_probe().copies(2) > 0
    assert [int(peak._buffers(number)[0].min()) for number in range(2)] == [7, 8]


@pytest.mark.usefixtures("_fresh")
def test_without_a_c_compiler_a_matrix_product_is_a_lower_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peak, "_MATRIX", 64)
    monkeypatch.setenv("NATC_CC", "no-such-compiler")
    threads = torch.get_num_threads()
    rates = peak.measure(seconds=0.01)
    assert rates.lower_bound and "NATC_CC" in rates.method and "64 x 64" in rates.method
    assert rates.peak is not None and rates.peak > 0 and torch.get_num_threads() == threads


@pytest.mark.usefixtures("_fresh")
def test_a_compiler_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_MATRIX", 64)
    monkeypatch.setenv("NATC_CC", "false")
    assert peak.open_probe().lower_bound
