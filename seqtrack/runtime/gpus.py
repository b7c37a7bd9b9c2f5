"""NVIDIA GPUs of this project's users, by name: for `plan`, and for the MFU of benchmarks."""

from dataclasses import dataclass

from seqtrack.device import Capability


@dataclass(frozen=True)
class Gpu:
    """One card: compute capability, installed memory, and dense peaks of matrix products in TFLOP/s.

    `half` is fp16 or bf16 with float32 sums; 0 where the card has no unit for it. Those of laptop GPUs are at the
    highest boost clock, so utilisation is a lower bound.
    """

    capability: Capability
    memory_gib: float
    fp32: float
    tf32: float
    half: float

    def peak_tflops(self, precision: str) -> float | None:
        """Peak for "fp32", "tf32", "fp16" or "bf16"; None where the card cannot compute in it."""
        if precision == "bf16" and self.capability < (8, 0):
            return None
        return {"fp32": self.fp32, "tf32": self.tf32}.get(precision, self.half) or None


def _geforce(series: int, memory_gib: float, multiprocessors: int, boost_ghz: float) -> Gpu:
    """RTX 30 and 40: 256 operations per multiprocessor and clock in fp32 and TF32, twice that in half precision."""
    fp32 = multiprocessors * 256 * boost_ghz / 1e3
    return Gpu({30: (8, 6), 40: (8, 9)}[series], memory_gib, fp32, fp32, 2 * fp32)


# By the driver's name without "NVIDIA", "Tesla" and "GeForce". Sources: NVIDIA's data sheets and architecture papers.
GPUS: dict[str, Gpu] = {
    "T4": Gpu((7, 5), 15, 8.1, 0, 65),
    "P100-PCIE-16GB": Gpu((6, 0), 16, 9.3, 0, 18.7),
    "V100-SXM2-16GB": Gpu((7, 0), 16, 15.7, 0, 125),
    "L4": Gpu((8, 9), 22, 30.3, 60, 121),
    "A10": Gpu((8, 6), 22, 31.2, 62.5, 125),
    "A100-SXM4-40GB": Gpu((8, 0), 40, 19.5, 156, 312),
    "A100-PCIE-40GB": Gpu((8, 0), 40, 19.5, 156, 312),
    "A100-SXM4-80GB": Gpu((8, 0), 80, 19.5, 156, 312),
    "A100 80GB PCIe": Gpu((8, 0), 80, 19.5, 156, 312),
    "H100 80GB HBM3": Gpu((9, 0), 80, 67, 494, 989),
    "H100 PCIe": Gpu((9, 0), 80, 51, 378, 756),
    "H200": Gpu((9, 0), 141, 67, 494, 989),
    "RTX 3050": _geforce(30, 8, 20, 1.777),
    "RTX 3060": _geforce(30, 12, 28, 1.777),
    "RTX 3060 Ti": _geforce(30, 8, 38, 1.665),
    "RTX 3070": _geforce(30, 8, 46, 1.725),
    "RTX 3080": _geforce(30, 10, 68, 1.710),
    "RTX 3090": _geforce(30, 24, 82, 1.695),
    "RTX 4060": _geforce(40, 8, 24, 2.460),
    "RTX 4060 Ti": _geforce(40, 8, 34, 2.535),
    "RTX 4070": _geforce(40, 12, 46, 2.475),
    "RTX 4080": _geforce(40, 16, 76, 2.505),
    "RTX 4090": _geforce(40, 24, 128, 2.520),
    "RTX 3050 Laptop GPU": _geforce(30, 4, 16, 1.740),
    "RTX 3050 Ti Laptop GPU": _geforce(30, 4, 20, 1.695),
    "RTX 3060 Laptop GPU": _geforce(30, 6, 30, 1.703),
    "RTX 3070 Laptop GPU": _geforce(30, 8, 40, 1.620),
    "RTX 3080 Laptop GPU": _geforce(30, 8, 48, 1.710),
    "RTX 4050 Laptop GPU": _geforce(40, 6, 20, 2.370),
    "RTX 4060 Laptop GPU": _geforce(40, 8, 24, 2.370),
    "RTX 4070 Laptop GPU": _geforce(40, 8, 36, 2.175),
    "RTX 4080 Laptop GPU": _geforce(40, 12, 58, 2.280),
    "RTX 4090 Laptop GPU": _geforce(40, 16, 76, 2.040),
}


def find_gpu(name: str) -> Gpu | None:
    """The GPU of that name, as the driver or a person writes it; None for one that is not in the table."""
    return {_short(known): gpu for known, gpu in GPUS.items()}.get(_short(name))


def _short(name: str) -> str:
    parts = [word for word in name.lower().replace("-", " ").split() if word not in ("nvidia", "tesla", "geforce")]
    return " ".join(parts).removesuffix(" gpu")
