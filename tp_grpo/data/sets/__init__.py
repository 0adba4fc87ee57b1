"""Prompt sets that `scripts/prepare_prompts.py` makes, without torch."""
