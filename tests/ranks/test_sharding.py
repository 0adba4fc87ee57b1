"""What a launch may ask for by its launcher's variables, and what is refused before any loading."""

from __future__ import annotations

import pytest

from config import tp_grpo
from tp_grpo.ranks import sharding

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}


def asked(environment: dict[str, str], **fields: object) -> bool:
    config = tp_grpo.get_config("pickscore_flux")
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return sharding.asked(environment, config)


def test_fsdp2_is_asked_for_by_the_launcher_alone() -> None:
    assert asked(FSDP2)
    shared = {"sample__groups": "shared_state", "sample__fork": "first"}
    assert asked(FSDP2, **shared, credit__name="terminal")
    assert asked(FSDP2, sample__same_latent=True, credit__name="terminal")
    assert not asked({}) and not asked({**FSDP2, "ACCELERATE_USE_FSDP": "false"})
    assert not asked({"FSDP_VERSION": "1"}, lora__rank=0, model__compile="inductor")


@pytest.mark.parametrize(
    ("environment", "fields", "message"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            {},
            "asks for DeepSpeed: .* or fsdp2.yaml, which shards the frozen",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "asks for Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "fsdp_version = 1: only FSDP2"),
        (
            {**FSDP2, "FSDP_RESHARD_AFTER_FORWARD": "false"},
            {},
            "fsdp_reshard_after_forward = false",
        ),
        (
            {**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"},
            {},
            "fsdp_offload_params: shares stay on the GPU",
        ),
        (
            FSDP2,
            {"lora__rank": 0},
            "lora.rank = 0: FSDP2 shards the frozen weights, and here all are trained",
        ),
        (
            FSDP2,
            {"sample__groups": "shared_state", "credit__name": "terminal"},
            "sample.fork = 'spread': ranks would call the model unequally often, .* set it to 'fi",
        ),
        (
            FSDP2,
            {"sample__same_latent": True},
            "sample.same_latent = True: ranks would call the model unequally often",
        ),
        (FSDP2, {"model__compile": "inductor"}, "model.compile = 'inductor': .* leave it empty"),
    ],
)
def test_what_does_not_work_is_refused_with_the_reason(
    environment: dict[str, str], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        asked(environment, **fields)


def test_all_that_does_not_go_with_fsdp_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"fsdp_version = 1.*; lora\.rank = 0"):
        asked({"ACCELERATE_USE_FSDP": "true"}, lora__rank=0)
