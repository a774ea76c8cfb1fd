"""What the hardware does well, and is to be told to do. Needs torch."""

import os

import torch

#: torch then asks Linux for pages of 2 MB instead of 4 KB where a tensor is larger. A step on a CPU frees and allocates
#: the same large blocks every time, and the system fills every page with zeros as it is first touched: of the training
#: of a table with a network, a fifth to a third of the time (LOG.md). torch reads it once, when it first allocates; a
#: value that is there already stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def native_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware. Elsewhere it is emulated, and slower than float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Private names: torch publishes no such question for CPUs. Without them the answer is the safe one.
    return any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
