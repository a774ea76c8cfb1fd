"""What the hardware does well. Needs torch."""

import torch


def native_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware. Elsewhere it is emulated, and slower than float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Private names: torch publishes no such question for CPUs. Without them the answer is the safe one.
    return any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
