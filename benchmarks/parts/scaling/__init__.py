"""The parts of `benchmarks.scale`, each a function of a `Bench` that is run in a process of its own."""
