"""What a run reads by name: by its content it is known again under another path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tp_grpo.data.prompts import PromptSet
from tp_grpo.models import adapter_file, pretrained
from tp_grpo.models.families import adapter
from tp_grpo.settings import Settings
from tp_grpo.store import files
from tp_grpo.store.compare import CONTENT


def of(settings: Settings, prompt_sets: Mapping[str, PromptSet]) -> dict[str, str]:
    """{field + CONTENT: digest} of the prompts, the model's files and its adapters.

    A model that is named by its id on the hub is downloaded. Raises ValueError as `models.load`.
    """
    model, pipeline = settings.model, adapter(settings.model.type).pipeline_class
    digests = {field: known.digest for field, known in prompt_sets.items()}
    pretrained.check_file(model.path, pipeline)
    configs = pretrained.read_configs(model.path, model.revision, pipeline.__name__)
    folder = Path(pretrained.fetch(pipeline, model.path, model.revision))
    parts = sorted(name for name in configs["index"] if (folder / name).is_dir())
    digests["model.path"] = pretrained.fingerprint(folder, parts)
    for field, path in {"model.adapter": model.adapter, "lora.init": settings.lora.init}.items():
        if path:
            digests[field] = files.sha256(adapter_file.find(field, path))
    return {field + CONTENT: digest for field, digest in digests.items()}
