"""The peak of a GPU by its name, against NVIDIA's data sheets."""

import pytest
import torch

from bamboo.pretrain.meter import peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
    ],
)
def test_a_known_gpu_has_its_data_sheets_peak(name: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense bf16: cards of one chip differ by how they are cooled and fed."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), "bf16")[0] == peak
