"""The prompt sets of `scripts/prepare_prompts.py`. Stands alone, without torch; `tp_grpo.prompts` reads the files."""
