"""One module per number that is promised; `./sift bench NAME` runs it, or `python -m benchmarks.NAME`."""
