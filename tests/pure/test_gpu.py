from __future__ import annotations

import ctypes
from typing import Any

import pytest

from natc.host import gpu


class FakeCuda:
    """The six driver calls that natc makes, answering for two GPUs."""

    capabilities = ((9, 0), (12, 1))

    def __init__(self, init_status: int = 0) -> None:
        self.init_status = init_status

    def cuInit(self, flags: int) -> int:
        return self.init_status

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13000
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = f"GPU number {device.value}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR is 75, _MINOR is 76.
        value._obj.value = self.capabilities[device.value][attribute - 75]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 80 << 30
        return 0


def ask(monkeypatch: pytest.MonkeyPatch, library: object) -> gpu.Driver:
    def load(name: str) -> object:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    return gpu.driver.__wrapped__()


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, OSError("no such library")) == gpu.Driver(None, ())


def test_a_driver_that_does_not_start_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(monkeypatch, FakeCuda(init_status=100)) == gpu.Driver("13.0", ())


def test_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ask(monkeypatch, FakeCuda())
    assert driver.cuda == "13.0"
    assert driver.gpus == (
        gpu.Gpu("GPU number 0", (9, 0), 80 << 30),
        gpu.Gpu("GPU number 1", (12, 1), 80 << 30),
    )
