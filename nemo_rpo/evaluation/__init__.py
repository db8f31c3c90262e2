"""How good a policy is: preferences judged against labels, and responses for the benchmarks that have judges."""
