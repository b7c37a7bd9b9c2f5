"""Peak rates of GPUs, which benchmarks divide by."""

import pytest
from benchmarks.peaks import peak_tflops


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("NVIDIA H100 80GB HBM3", {"bf16": 989}),
        ("NVIDIA H100 PCIe", {"tf32": 378}),
        ("NVIDIA A100-SXM4-80GB", {"bf16": 312}),
        ("Tesla T4", {"fp16": 65, "bf16": None, "tf32": None}),
        ("NVIDIA GeForce RTX 3090", {"bf16": 71.2, "fp32": 35.6}),
        ("NVIDIA GeForce RTX 3050 Laptop GPU", {"fp32": 7.1}),
        ("NVIDIA H100 NVL", {"bf16": None}),
    ],
)
def test_peaks_are_those_documented_by_the_vendor(name: str, peaks: dict[str, float | None]) -> None:
    for precision, tflops in peaks.items():
        assert peak_tflops(name, precision) == (tflops if tflops is None else pytest.approx(tflops, rel=0.01))
