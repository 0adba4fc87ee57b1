"""Adapters of peft, diffusers and kohya to start from: merged, or as the first weights."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_families import FAMILIES, lora
from tests.tiny_models import ode
from tp_grpo.models import adapter_file, export, families
from tp_grpo.models.policy import Policy

RANK, ALPHA = 4, 12
FOLDERS = {name: family for name, family in FAMILIES.items() if name != "sd35_large"}


@pytest.fixture(scope="module", params=FOLDERS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path, Tensor]:
    """A family, its checkpoint, an adapter exported for it, and latents drawn with it."""
    name, folder = str(request.param), tmp_path_factory.mktemp("adapted")
    path = FAMILIES[name].save(folder / "model")
    backbone = FAMILIES[name].load(path)
    made = lora(backbone, alpha=ALPHA)
    backbone.export(made, made.parameters, folder / "adapter")
    return name, path, folder / "adapter", ode(backbone, 2.0, steps=2)


@pytest.mark.parametrize("file", ["adapter_model", "pytorch_lora_weights", ""])
def test_an_adapter_merged_as_it_loads_draws_the_same(
    trained: tuple[str, Path, Path, Tensor], file: str
) -> None:
    name, path, adapter, drawn = trained
    where = adapter / f"{file}.safetensors" if file else adapter
    merged = FAMILIES[name].load(path, adapter=str(where))
    assert not any("lora" in n for n, _ in merged.transformer.named_parameters())
    torch.testing.assert_close(ode(merged, 2.0, steps=2), drawn, rtol=0, atol=1e-4)
    assert (ode(FAMILIES[name].load(path), 2.0, steps=2) - drawn).abs().max() > 1e-2


def test_a_policy_that_begins_with_it_draws_the_same_at_any_alpha(
    trained: tuple[str, Path, Path, Tensor],
) -> None:
    name, path, adapter, drawn = trained
    for alpha in (RANK, ALPHA):
        backbone = FAMILIES[name].load(path)
        updates = backbone.begin_with(str(adapter))
        plain = ode(backbone, 2.0, steps=2)
        made = lora(backbone, alpha=alpha, moved=0)
        adapter_file.begin(made, updates, alpha / RANK)
        torch.testing.assert_close(ode(backbone, 2.0, steps=2), drawn, rtol=0, atol=1e-4)
        with made.reference():
            assert torch.equal(ode(backbone, 2.0, steps=2), plain), "the KL is to the base"


@pytest.mark.parametrize("file", ["adapter_model", "pytorch_lora_weights"])
def test_what_is_read_is_the_files_own_value_not_rounded_to_the_models(
    trained: tuple[str, Path, Path, Tensor], file: str
) -> None:
    name, path, adapter, _ = trained
    backbone = FAMILIES[name].load(path, dtype="bf16")
    updates = backbone.begin_with(str(adapter / f"{file}.safetensors"))
    stored = load_file(adapter / "adapter_model.safetensors")
    for module, update in updates.items():
        down, up = (stored[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        assert torch.equal(update.down, down), module
        assert torch.equal(update.up, up), module


def test_what_adapts_modules_without_a_part_in_the_image_is_read_without_it(tmp_path: Path) -> None:
    """Others train the text of Qwen-Image's last block, which changes nothing."""
    family = FAMILIES["qwen"]
    backbone = family.load(family.save(tmp_path / "model"))
    skipped, backbone.frozen = backbone.frozen, ()
    made = lora(backbone, alpha=ALPHA)
    backbone.export(made, made.parameters, tmp_path / "adapter")
    fresh = family.load(tmp_path / "model")
    updates = fresh.begin_with(str(tmp_path / "adapter"))
    assert len(updates) == len(made.parameters) // 2 - len(skipped)
    adapter_file.begin(lora(fresh, alpha=ALPHA, moved=0), updates, ALPHA / RANK)
    drawn = ode(backbone, 2.0, steps=2)
    torch.testing.assert_close(ode(fresh, 2.0, steps=2), drawn, rtol=0, atol=1e-5)


@pytest.fixture
def sd3(tmp_path: Path) -> Any:
    return FAMILIES["sd3"].load(FAMILIES["sd3"].save(tmp_path / "model"))


def test_kohyas_names_with_an_alpha_are_read(tmp_path: Path) -> None:
    """FLUX.1's, whose names kohya joins by underscores."""
    family = FAMILIES["flux"]
    backbone = family.load(family.save(tmp_path / "model"))
    weight = backbone.transformer.transformer_blocks[0].attn.to_out[0].weight
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    module = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
    save_file({**tensors, f"{module}.alpha": torch.tensor(1.0)}, tmp_path / "kohya.safetensors")
    (update,) = backbone.begin_with(str(tmp_path / "kohya.safetensors")).values()
    torch.testing.assert_close(update.up @ update.down, up @ down / 2)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_the_part_for_a_text_encoder_is_left_out_with_a_warning(name: str, tmp_path: Path) -> None:
    backbone = FAMILIES[name].load(FAMILIES[name].save(tmp_path / "model"))
    made = lora(backbone, alpha=ALPHA)
    backbone.export(made, made.parameters, tmp_path / "adapter")
    file = tmp_path / "adapter" / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as held:
        header = held.metadata()
    key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    extra = {key.format("A"): torch.ones(2, 8), key.format("B"): torch.ones(8, 2)}
    both = tmp_path / "both.safetensors"
    save_file(load_file(file) | extra, both, metadata=header)
    fresh = FAMILIES[name].load(tmp_path / "model")
    with pytest.warns(UserWarning, match="lora.init: the part for a text encoder is left out"):
        check(fresh, both, RANK)  # the text encoder's rank is not the adapter's
    updates = fresh.begin_with(str(both))
    assert len(updates) == len(made.parameters) // 2
    assert not any("lora" in n for n, _ in fresh.transformer.named_parameters())


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_files_keep_their_scale(sd3: Any, tmp_path: Path, rslora: bool) -> None:
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["attn.to_q"], use_rslora=rslora)
    config.init_lora_weights = False
    wrapped = get_peft_model(sd3.transformer, config)
    wrapped.save_pretrained(tmp_path / "peft")
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    fresh = FAMILIES["sd3"].load(tmp_path / "model")
    updates = fresh.begin_with(str(tmp_path / "peft"))
    assert len(updates) == 4
    name, update = next(iter(updates.items()))
    up, down = (stored[f"base_model.model.{name}.lora_{x}.weight"] for x in "BA")
    scale = 6 / math.sqrt(2) if rslora else 3
    torch.testing.assert_close(update.up @ update.down, scale * up @ down)


def check(backbone: Any, path: Path, rank: int | None = None) -> None:
    """As it is checked before the weights of that backbone load."""
    config = backbone.transformer.config
    adapter_file.check("lora.init", str(path), backbone.pipeline_class, config, rank)


def test_what_cannot_be_read_is_refused_in_words(sd3: Any, tmp_path: Path) -> None:
    made = lora(sd3, alpha=ALPHA)
    sd3.export(made, made.parameters, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"rank 4, the LoRA .* lora.rank = 32; set lora.rank = 4"):
        check(sd3, tmp_path / "adapter", 32)
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors or pytorch_lora_weights"):
        check(sd3, tmp_path / "model")
    with pytest.raises(ValueError, match=r"is no adapter's .safetensors: "):
        check(sd3, tmp_path / "nowhere.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds no LoRA: no name ends in lora_A\.weight or"):
        check(sd3, tmp_path / "other.safetensors")
    dora = {"x.lora_A.weight": torch.ones(2, 2), "x.dora_scale": torch.ones(2)}
    save_file(dora, tmp_path / "dora.safetensors")
    with pytest.raises(ValueError, match="is a DoRA, which is not read here"):
        check(sd3, tmp_path / "dora.safetensors")
    biased = {"x.lora_A.weight": torch.ones(2, 2), "x.lora_B.bias": torch.ones(2)}
    save_file(biased, tmp_path / "biased.safetensors")
    with pytest.raises(ValueError, match=r"has biases, which are not read here: x\.lora_B\.bias"):
        check(sd3, tmp_path / "biased.safetensors")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(
        ValueError, match=r"lora\.init: .*pointer\.safetensors is a git-lfs pointer"
    ):
        check(sd3, tmp_path / "pointer.safetensors")
    save_file({"x.lora_A.weight": torch.tensor(1.0)}, tmp_path / "scalar.safetensors")
    with pytest.raises(ValueError, match="holds no LoRA"):
        check(sd3, tmp_path / "scalar.safetensors")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    for refuse in (lambda path: check(sd3, path), sd3.begin_with):
        with pytest.raises(ValueError, match=r"_config\.json has use_dora, which is not read"):
            refuse(tmp_path / "adapter")
    config.write_text("[]")
    with pytest.raises(ValueError, match=r"lora\.init: .*adapter_config\.json holds a list, not"):
        check(sd3, tmp_path / "adapter")


def test_an_adapter_of_another_model_is_refused_before_weights_load(
    trained: tuple[str, Path, Path, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, path, adapter, _ = trained
    pipeline = families.adapter(FAMILIES[name].type).pipeline_class
    monkeypatch.setattr(
        pipeline, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded")
    )
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = (adapter / "adapter_config.json").read_text()
    first = next(key for key in tensors if key.endswith("lora_B.weight"))
    module = first.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
    others = {
        f"transformer.{module} has 7 outputs, this one's": tensors | {first: torch.ones(7, RANK)},
        r"it adapts transformer\.blocks.9.q, which this one does not have": {
            f"base_model.model.blocks.9.q.lora_{x}.weight": torch.ones(RANK, RANK) for x in "AB"
        },
    }
    for number, (words, changed) in enumerate(others.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(config)
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"model.adapter = .* is of another model: .*{words}"):
            FAMILIES[name].load(path, adapter=str(folder))


def test_an_adapter_of_another_model_or_of_other_modules_is_refused(
    sd3: Any, tmp_path: Path
) -> None:
    flux = FAMILIES["flux"].load(FAMILIES["flux"].save(tmp_path / "flux"))
    made = lora(flux, alpha=ALPHA)
    flux.export(made, made.parameters, tmp_path / "foreign")
    with pytest.raises(ValueError, match="is of another model"):
        sd3.begin_with(str(tmp_path / "foreign"))
    assert not any("lora" in name for name, _ in sd3.transformer.named_parameters())
    wide = FAMILIES["sd3"].load(tmp_path / "model")
    made = lora(wide, alpha=ALPHA)
    wide.export(made, made.parameters, tmp_path / "wide")
    updates = sd3.begin_with(str(tmp_path / "wide"))
    narrow = Policy(sd3.transformer, rank=RANK, alpha=4, targets=("attn.to_q",), kl=False)
    with pytest.raises(ValueError, match=r"lora.init adapts \d+ modules that lora.targets leaves"):
        adapter_file.begin(narrow, updates, 1.0)


@pytest.mark.parametrize("file", ["adapter_model", "pytorch_lora_weights"])
@pytest.mark.parametrize("factor", "AB")
def test_a_lora_that_lacks_one_factor_is_refused_before_weights_load(
    sd3: Any, tmp_path: Path, file: str, factor: str
) -> None:
    made = lora(sd3, alpha=ALPHA)
    sd3.export(made, made.parameters, tmp_path / "adapter")
    path = tmp_path / "adapter" / f"{file}.safetensors"
    tensors = load_file(path)
    gone = next(name for name in tensors if name.endswith(f"lora_{factor}.weight"))
    save_file({name: value for name, value in tensors.items() if name != gone}, path)
    with pytest.raises(ValueError, match=rf"holds .* but lacks {re.escape(gone)}; fetch"):
        check(sd3, path)
    if file == "adapter_model":
        with pytest.raises(ValueError, match=rf"--checkpoint: .* lacks {re.escape(gone)}; copy"):
            export.check(tmp_path / "adapter")


def test_half_a_lora_in_kohyas_names_is_refused(sd3: Any, tmp_path: Path) -> None:
    file = tmp_path / "kohya.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, file)
    with pytest.raises(ValueError, match=r"lacks lora_unet_x\.lora_up\.weight"):
        check(sd3, file)


def test_a_trained_transformer_that_lacks_a_tensor_is_refused(sd3: Any, tmp_path: Path) -> None:
    folder = tmp_path / "policy" / "transformer"
    sd3.transformer.save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    gone = next(name for name, _ in sd3.transformer.named_parameters())
    save_file({name: value for name, value in tensors.items() if name != gone}, file)
    with pytest.raises(ValueError, match=rf"lacks {re.escape(gone)}: it was copied in part"):
        export.check_base(folder.parent, sd3.transformer.config)
