"""Which runtime computes which form of a file: the parts of `benchmarks/runtimes.py`."""
