"""Run folders -> one self-contained HTML page: curves, before and after, trajectories."""

from tp_grpo.report.data import gains
from tp_grpo.report.page import write
from tp_grpo.report.strips import trajectories

__all__ = ["gains", "trajectories", "write"]
