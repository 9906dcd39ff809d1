"""What a device allows, against numbers that were worked out by hand or published."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("limits", Path(__file__).parent.parent / "benchmarks" / "limits.py")
limits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(limits)
SEVEN_BILLION = limits.Model(7_600_000_000, 28, 4, 128, 2)


def test_decoding_reads_all_weights_and_the_cache_so_far():
    """7.6 billion parameters on an H100 with 256 sequences of 4,096 tokens: 60.1 and 15.2 GB a step."""
    step = limits.decoding(SEVEN_BILLION, 256, 4096, 1, 3.35e12)
    assert step == pytest.approx((60.1e9 + 15.2e9) / 3.35e12, rel=0.002)
    assert limits.decoding(SEVEN_BILLION, 256, 0, 100, 1e12) == pytest.approx(
        sum(limits.decoding(SEVEN_BILLION, 256, before, 1, 1e12) for before in range(100))
    )


def test_utilisation_counts_six_operations_a_parameter_and_token():
    assert limits.mfu(SEVEN_BILLION, 1000, 0.1, 989e12) == pytest.approx(6 * 7.6e9 * 1000 / 0.1 / 989e12)


@pytest.mark.parametrize(
    ("device", "flops"), [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("", 7.0)]
)
def test_the_peak_is_the_data_sheets_where_there_is_one(device, flops):
    assert limits.peak(device, 7.0) == flops
