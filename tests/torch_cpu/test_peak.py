"""The probe of what a CPU can do: it runs, with a C compiler and without, and says which."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from natc.bench import peak


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No probe of before, and short copies."""
    monkeypatch.setattr(peak, "_COPY_BYTES", 2**20)
    peak.open_probe.cache_clear()
    peak._buffers.cache_clear()
    yield
    peak.open_probe.cache_clear()
    peak._buffers.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_every_rate_is_measured() -> None:
    found = peak.measure(seconds=0.01)
    assert min(found.multiply_adds, found.multiply_adds_one_thread, found.bytes_per_second) > 0
    assert found.threads == torch.get_num_threads()
    assert found.lower_bound == found.method.startswith("torch.mm")


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
    found = peak.measure(seconds=0.01)
    assert found.lower_bound and "NATC_CC" in found.method and "64 x 64" in found.method
    assert found.multiply_adds > 0 and torch.get_num_threads() == threads


@pytest.mark.usefixtures("_fresh")
def test_a_compiler_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_MATRIX", 64)
    monkeypatch.setenv("NATC_CC", "false")
    assert peak.open_probe().lower_bound
