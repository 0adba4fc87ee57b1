"""Backbones: one adapter a model family, all behind `base.Backbone`."""

from tp_grpo.models.base import Backbone, load

__all__ = ["Backbone", "load"]
