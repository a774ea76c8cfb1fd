"""The clock, and what it is held against: a device that may still be computing when a call returns."""

import time

import torch

from leaf.errors import LeafError
from leaf.student.metrics import gpu_memory_gb


def choose_device(device: str | None) -> str:
    """`device`, or a GPU where there is one. Raises `LeafError` for a GPU that is not there."""
    if device and device.startswith("cuda") and not torch.cuda.is_available():
        raise LeafError(f"--device {device}, but torch sees no GPU; leave --device out to time the CPU")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


class Stopwatch:
    """Seconds between `start` and `stop`, all work on `device` included, and the most GPU memory held meanwhile."""

    def __init__(self, device: str) -> None:
        self._device, self._on_gpu = device, device.startswith("cuda")
        self.seconds = 0.0
        self.gpu_memory_gb: float | None = None

    def start(self) -> None:
        """Waits for what was asked for before, then starts."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._began = self._now()

    def stop(self) -> None:
        """Waits for the device and stops."""
        self.seconds = self._now() - self._began
        self.gpu_memory_gb = gpu_memory_gb(self._device)
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)  # the next contestant may not have a watch

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
