"""Dense peaks of NVIDIA GPUs for matrix products, by name: for `plan`, and the model FLOPs utilisation (MFU) of a step.

Sources: NVIDIA's data sheets and architecture papers. Those of laptop GPUs are at the highest boost clock, so that
utilisation is a lower bound.
"""

# TFLOP/s in fp32, TF32, and fp16 or bf16 with float32 sums; 0 where the card has no unit for it. The names are the
# driver's without "NVIDIA", "Tesla" and "GeForce".
PEAKS = {
    "T4": (8.1, 0.0, 65.0),
    **dict.fromkeys(("P100", "P100-PCIE-16GB"), (9.3, 0.0, 18.7)),
    **dict.fromkeys(("V100", "V100-SXM2-16GB"), (15.7, 0.0, 125.0)),
    "L4": (30.3, 60.0, 121.0),
    "A10": (31.2, 62.5, 125.0),
    **dict.fromkeys(("A100-SXM4-40GB", "A100-PCIE-40GB", "A100-SXM4-80GB", "A100 80GB PCIe"), (19.5, 156.0, 312.0)),
    **dict.fromkeys(("H100 80GB HBM3", "H200"), (67.0, 494.0, 989.0)),
    "H100 PCIe": (51.0, 378.0, 756.0),
}
# 256 operations per multiprocessor and clock in fp32 and TF32, twice that in half precision; the clock in GHz.
_GEFORCE = {
    "RTX 3050": (20, 1.777), "RTX 3060": (28, 1.777), "RTX 3070": (46, 1.725), "RTX 3080": (68, 1.710),
    "RTX 3090": (82, 1.695), "RTX 4060": (24, 2.460), "RTX 4070": (46, 2.475), "RTX 4080": (76, 2.505),
    "RTX 4090": (128, 2.520),
    "RTX 3050 Laptop GPU": (16, 1.740), "RTX 3050 Ti Laptop GPU": (20, 1.695), "RTX 3060 Laptop GPU": (30, 1.703),
    "RTX 3070 Laptop GPU": (40, 1.620), "RTX 3080 Laptop GPU": (48, 1.710), "RTX 4050 Laptop GPU": (20, 2.370),
    "RTX 4060 Laptop GPU": (24, 2.370), "RTX 4070 Laptop GPU": (36, 2.175), "RTX 4080 Laptop GPU": (58, 2.280),
    "RTX 4090 Laptop GPU": (76, 2.040),
}  # fmt: skip
PEAKS |= {name: (0.256 * n * ghz, 0.256 * n * ghz, 0.512 * n * ghz) for name, (n, ghz) in _GEFORCE.items()}


def peak_tflops(name: str, precision: str) -> float | None:
    """Peak of the GPU of that name, as the driver writes it, for "fp32", "tf32", "fp16" or "bf16"; None where it is
    unknown or the card cannot compute in it."""
    words = [word for word in name.split() if word not in ("NVIDIA", "Tesla", "GeForce")]
    short = " ".join(words)
    fp32, tf32, half = PEAKS.get(short) or PEAKS.get(f"{short} GPU", (0.0, 0.0, 0.0))
    # The first cards with TF32 are the first with bf16.
    return {"fp32": fp32, "tf32": tf32, "fp16": half, "bf16": half if tf32 else 0.0}[precision] or None
