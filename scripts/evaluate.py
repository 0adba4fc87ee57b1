"""Score a trained policy, or the base model, on a prompt file: seeded ODE images, one table.

    python scripts/evaluate.py --config=config/tp_grpo.py:shapes_tiny --checkpoint=runs/quickstart
    python scripts/evaluate.py --config=config/tp_grpo.py:geneval_sd3 --checkpoint=runs/mine/checkpoints/epoch-200 \\
        --prompts=dataset/drawbench.txt --rewards=pickscore,aesthetic

Steps, images a prompt, guidance and seed are the config's (eval.steps, eval.members, sample.guidance_scale, seed). The
same command goes on where it was stopped; `accelerate launch scripts/evaluate.py ...` shares the work between GPUs, and
neither that nor the batch size changes which images are scored.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from _config import CONFIG, parse, quiet
from absl import app, flags

if TYPE_CHECKING:
    from tp_grpo.settings import Settings

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "a run, one of its checkpoints, or an exported policy; none: base"
)
_PROMPTS = flags.DEFINE_string(
    "prompts", "", "prompt file (.txt, .jsonl) or module:function; none: prompts.eval"
)
_REWARDS = flags.DEFINE_list("rewards", [], "scorers by name; none: the config's")
_OUT = flags.DEFINE_string("out", "", "folder for scores and table; none: below output_dir")


def main(_: list[str]) -> int:
    from tp_grpo.data import prompts
    from tp_grpo.evaluate import policy_on_base
    from tp_grpo.evaluate.standing import assess
    from tp_grpo.rewards.reward_set import RewardError
    from tp_grpo.settings import Settings

    quiet()
    try:
        config = Settings.read(CONFIG.value)
        known_scorers = config.rewards.scorers
        scorers = {name: known_scorers.get(name, 1.0) for name in _REWARDS.value} or known_scorers
        source = _PROMPTS.value or config.prompts.eval
        policy = policy_on_base.find(_CHECKPOINT.value) if _CHECKPOINT.value else None
        known = prompts.load(source, field="--prompts" if _PROMPTS.value else "prompts.eval")
        assess(
            config,
            scorers,
            policy,
            known,
            Path(_OUT.value) if _OUT.value else _default_out(config, policy, source),
        )
    except (ValueError, RewardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _default_out(config: Settings, policy: Path | None, source: str) -> Path:
    """`OUTPUT_DIR/evaluate/POLICY-PROMPTS`: another policy or prompt file gets a folder of its own."""
    name = "-".join(policy.resolve().parts[-4:]) if policy else Path(config.model.path).name
    return (
        Path(config.output_dir)
        / "evaluate"
        / f"{name}-{source.replace('/', '-').replace(':', '-')}"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
