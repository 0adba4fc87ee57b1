"""Configurations: the file is the algorithm, the function's argument the recipe."""
