"""Score a trained policy, or the base model, on a prompt file: seeded ODE images, one table.

    python scripts/evaluate.py --config=config/tp_grpo.py:shapes_tiny --checkpoint=runs/quickstart
    python scripts/evaluate.py --config=config/tp_grpo.py:geneval_sd3 \\
        --checkpoint=runs/mine/checkpoints/epoch-200 \\
        --prompts=dataset/drawbench.txt --rewards=pickscore,aesthetic

The config gives steps, images per prompt, guidance and seed (eval.steps, eval.members,
sample.guidance_scale, seed). The same command resumes where it was stopped.
`accelerate launch scripts/evaluate.py ...` shares the work between GPUs; neither that nor the batch
size changes which images are scored.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from _config import CONFIG, mistake, parse, quiet
from absl import app, flags

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "a run, one of its checkpoints, or an exported policy; none: base"
)
_PROMPTS = flags.DEFINE_string(
    "prompts", "", "prompt file (.txt, .jsonl) or module:function; none: prompts.eval"
)
_REWARDS = flags.DEFINE_list("rewards", [], "scorers by name; none: the config's")
_OUT = flags.DEFINE_string("out", "", "folder for scores and table; none: below output_dir")


def main(_: list[str]) -> int:
    from tp_grpo.rewards.reward_set import RewardError

    quiet()
    try:
        evaluate()
    except (ValueError, OSError, RewardError) as error:
        return mistake(error)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C; the same command resumes", file=sys.stderr)
        return 130
    return 0


def evaluate() -> None:
    from tp_grpo.data import prompts
    from tp_grpo.evaluate import policy_on_base
    from tp_grpo.evaluate.standing import assess
    from tp_grpo.settings import Settings
    from tp_grpo.store import files

    config = Settings.read(CONFIG.value)
    configured = config.rewards.scorers
    scorers = {name: configured.get(name, 1.0) for name in _REWARDS.value} or configured
    policy = policy_on_base.find(_CHECKPOINT.value)
    source = _PROMPTS.value or config.prompts.eval
    known = prompts.load(source, field="--prompts" if _PROMPTS.value else "prompts.eval")
    # Another policy or prompt file gets another folder.
    name = "-".join(policy.resolve().parts[-4:]) if policy else Path(config.model.path).name
    file = source.replace("/", "-").replace(":", "-")
    below = Path(config.output_dir) / "evaluate" / short(f"{name}-{file}")
    out = files.expanded(_OUT.value) if _OUT.value else below
    files.check_writable(out, "--out" if _OUT.value else "output_dir")
    assess(config, scorers, policy, known, out)


def short(name: str, most: int = 120) -> str:
    """The name, or its beginning and a hash of it: file systems take 255 bytes."""
    if len(name.encode()) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: most - 13].decode(errors='ignore')}-{digest}"


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
