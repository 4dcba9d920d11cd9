"""The inference benchmarks: what is compared, how it is timed, and how the figures become tables and plots."""
