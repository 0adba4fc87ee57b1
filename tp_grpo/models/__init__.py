"""Models: one adapter file a family, all behind the protocol `base.Backbone`."""

from tp_grpo.models.base import Backbone
from tp_grpo.models.families import load

__all__ = ["Backbone", "load"]
