"""Real parts of a small cluster on this machine, for the demonstration and the benchmarks."""
