"""The GPU's benchmark, on a tiny model without a GPU: both sides write what they are told, and the roofline is one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import _generation_gpu as gpu
from include.settings import PROJECT_ROOT


@pytest.mark.model
def test_both_sides_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(gpu, "REFERENCE_BATCH", 8)
    monkeypatch.setattr(gpu, "LONGEST", 24)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other stand still on a busy machine
    try:
        figures = gpu.measure(12, 1, gpu.TINY, "cpu", max_rows=8, cache_tokens=4096)
    finally:
        torch.set_num_threads(threads)
    assert figures["tokens"] == sum(gpu.make_workload(12, gpu.TINY["vocab_size"]).lengths)
    assert 0 < figures["roofline_share"] < 1
    assert 0 < figures["reference_waste"] < 1


def test_the_roofline_counts_prefill_weights_and_cache() -> None:
    model = gpu.make_model(gpu.TINY, "cpu", "sdpa")
    weights = 2 * sum(weight.numel() for weight in model.parameters())
    work = gpu.Workload([[1] * 70, [2] * 90], [5, 3])
    # A device that computes for nothing: each step reads the weights once, and the cache, which is small.
    read_only = gpu.roofline_seconds(model, work, gpu.Ceilings(1e30, float(weights)), 8, 4096)
    assert 5 < read_only < 6
    # One row at a time: the steps of both rows.
    assert 8 < gpu.roofline_seconds(model, work, gpu.Ceilings(1e30, float(weights)), 1, 4096) < 9
    # A device that reads for nothing: more than two FLOPs a weight of the body and token.
    body = weights / 2 - model.config.vocab_size * model.config.hidden_size
    compute_only = gpu.roofline_seconds(model, work, gpu.Ceilings(2 * body, 1e30), 8, 4096)
    assert 70 + 90 + 6 < compute_only < 1.5 * (70 + 90 + 6)


def test_it_imports_what_a_bare_machine_has() -> None:
    code = (
        "import sys, benchmarks.generation, benchmarks._generation_gpu\n"
        "print([name for name in ('pydantic', 'pyarrow', 'psycopg', 'datasets', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
