"""TP-GRPO: group-relative policy optimisation of flow-matching models with turning-point credit."""
