"""A model and its adapter by their content: they are known again under another path."""

from __future__ import annotations

from pathlib import Path

from tp_grpo.models import adapter_file, pretrained
from tp_grpo.models.families import adapter
from tp_grpo.settings import ModelSettings
from tp_grpo.store import files


def of(model: ModelSettings) -> dict[str, str]:
    """{field: digest} of the model's files and, if one is merged, its adapter.

    A model that is named by its id on the hub is downloaded. Raises ValueError as `models.load`.
    """
    pipeline = adapter(model.type).pipeline_class
    pretrained.check_file(model.path, pipeline)
    configs = pretrained.read_configs(model.path, model.revision, pipeline.__name__)
    folder = Path(pretrained.fetch(pipeline, model.path, model.revision))
    parts = sorted(name for name in configs["index"] if (folder / name).is_dir())
    digests = {"model.path": pretrained.fingerprint(folder, parts)}
    return digests | of_adapter("model.adapter", model.adapter)


def of_adapter(field: str, path: str) -> dict[str, str]:
    """{field: digest} of an adapter's file; empty for an empty path."""
    return {field: files.sha256(adapter_file.find(field, path))} if path else {}
