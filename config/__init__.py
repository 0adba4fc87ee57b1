"""Configurations: the file is the algorithm, the function's argument the recipe."""

ALGORITHMS = ("tp_grpo", "flow_grpo", "shared_state", "nft", "elbo_pg", "awm", "dgpo")
