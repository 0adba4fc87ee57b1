"""What a run reads by name: by its content it is known again under another path."""

from __future__ import annotations

from collections.abc import Mapping

from tp_grpo.data.prompts import PromptSet
from tp_grpo.models import contents
from tp_grpo.settings import Settings
from tp_grpo.store.compare import CONTENT


def of(settings: Settings, prompt_sets: Mapping[str, PromptSet]) -> dict[str, str]:
    """{field + CONTENT: digest} of the prompts, the model's files and its adapters.

    A model that is named by its id on the hub is downloaded. Raises ValueError as `models.load`.
    """
    digests = {field: known.digest for field, known in prompt_sets.items()}
    digests |= contents.of(settings.model)
    digests |= contents.of_adapter("lora.init", settings.lora.init)
    return {field + CONTENT: digest for field, digest in digests.items()}
