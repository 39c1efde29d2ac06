"""Meta-World: 50 robot-manipulation tasks, as the benchmarks MT1, MT10, MT25 and MT50, or any list of them."""
