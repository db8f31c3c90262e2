"""What is assumed of a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nemo_rpo.config.arithmetic.flops import PEAK
from nemo_rpo.errors import ConfigError

# GB of memory, from NVIDIA's data sheets; of the A100 the larger one.
MEMORY = {"A100": 80, "H100 PCIe": 80, "H100": 80, "H200": 141, "B200": 180}


@dataclass(frozen=True)
class Hardware:
    """What is assumed of one GPU: an H100 SXM, and what Megatron-Core reaches on it with models of these sizes."""

    name: str = "H100 80 GB"
    memory: float = 80e9  # bytes
    peak: float = PEAK["H100"]  # FLOP/s
    utilisation: float = 0.40  # model FLOPs over peak: an assumption, not a measurement
    host_bandwidth: float = 50e9  # bytes/s, PCIe 5 × 16


def hardware_named(kind: str, utilisation: float | None = None) -> Hardware:
    """A GPU of a kind in :data:`MEMORY`, at a share of its peak rate (None: :class:`Hardware`'s).

    Raises:
        ConfigError: an unknown kind, or a share that is none.
    """
    if kind not in MEMORY:
        raise ConfigError(f"--gpu {kind}: known are {', '.join(MEMORY)}")
    if utilisation is not None and not 0 < utilisation <= 1:
        raise ConfigError(f"--utilisation is a share of the peak, above 0 and at most 1; got {utilisation:g}")
    gpu = replace(Hardware(), name=f"{kind} {MEMORY[kind]} GB", memory=MEMORY[kind] * 1e9, peak=PEAK[kind])
    return gpu if utilisation is None else replace(gpu, utilisation=utilisation)
