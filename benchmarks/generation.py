"""Generation against what the reference generator does: equal prompts and answer lengths, enforced on both sides.

On a machine with a GPU at SmolLM3-3B's shape with random weights, where `python3 -m benchmarks.generation` needs torch
(2.11 or newer), transformers (5.17 or newer) and numpy alone; elsewhere with the small model on the CPU.
"""

from __future__ import annotations

import argparse

from benchmarks._report import report


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="the CPU's benchmark, also on a machine with a GPU")
    parser.add_argument("--prompts", type=int, help="96 on the CPU, 8192 on a GPU")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a batch of both sides on the CPU")
    options = parser.parse_args()
    import torch

    if torch.cuda.is_available() and not options.cpu:
        from benchmarks import _generation_gpu as gpu

        print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")
        figures = gpu.measure(options.prompts or 8192, options.rounds, gpu.SMOLLM3_3B, "cuda")
        report("generation", figures, gpu.REACH)
    else:
        from benchmarks import _generation_cpu as cpu

        figures = cpu.measure(options.prompts or 96, options.rounds, options.batch_size)
        report("generation", figures, cpu.REACH)


if __name__ == "__main__":
    main()
