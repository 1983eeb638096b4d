"""timm's conversion of published names: what it renames is loaded, what it resamples or leaves out is told."""

from pathlib import Path

import pytest
import timm
import torch

from bamboo.cli.errors import DataError
from bamboo.model_zoo.wrappings import match_backbone

State = dict[str, torch.Tensor]

TEXT = {"positional_embedding", "token_embedding.weight", "text_projection", "logit_scale"}


def tower() -> torch.nn.Module:
    """Returns a vision tower with CLIP's parts: one block of width 64, patches of 16 pixels, 4 × 4 of them."""
    made: torch.nn.Module = timm.create_model("test_vit", num_classes=0, pre_norm=True, depth=1, img_size=64)
    return made


def clip_state(grid: int = 4, patch: int = 16) -> State:
    """Returns the tensors of that tower under OpenAI's names, and some of a text tower."""
    torch.manual_seed(0)
    block = "transformer.resblocks.0."
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (64,),
        "positional_embedding": (grid * grid + 1, 64),
        "proj": (64, 32),
        "conv1.weight": (64, 3, patch, patch),
        **{f"{name}.{kind}": (64,) for name in ("ln_pre", "ln_post", f"{block}ln_1", f"{block}ln_2") for kind in ("weight", "bias")},
        f"{block}attn.in_proj_weight": (192, 64),
        f"{block}attn.in_proj_bias": (192,),
        f"{block}attn.out_proj.weight": (64, 64),
        f"{block}attn.out_proj.bias": (64,),
        f"{block}mlp.c_fc.weight": (192, 64),
        f"{block}mlp.c_fc.bias": (192,),
        f"{block}mlp.c_proj.weight": (64, 192),
        f"{block}mlp.c_proj.bias": (64,),
    }
    state = {f"visual.{name}": torch.randn(shape) for name, shape in shapes.items()}
    return {**state, **{name: torch.randn(3, 4) for name in TEXT}}


def test_a_file_of_openais_names_is_renamed_and_the_rest_named() -> None:
    """Values under timm's names against those under OpenAI's; the text tower's tensors are told as left out, the others are not."""
    state = clip_state()
    match = match_backbone(state, tower(), Path("clip.pt"))
    assert match.was_renamed
    assert set(match.left_out) == TEXT
    assert "4 tensors of other parts left out" in match.summary
    torch.testing.assert_close(match.tensors["pos_embed"][0], state["visual.positional_embedding"], rtol=0, atol=0)
    torch.testing.assert_close(match.tensors["patch_embed.proj.weight"], state["visual.conv1.weight"], rtol=0, atol=0)
    torch.testing.assert_close(match.head["head.weight"], state["visual.proj"].T, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "name"), [({"grid": 6}, "pos_embed"), ({"grid": 3}, "pos_embed"), ({"patch": 32}, r"patch_embed\.proj\.weight")]
)
def test_a_file_of_another_size_is_not_resampled(change: dict[str, int], name: str) -> None:
    """A tower of another resolution or patch size, which timm's conversion would fit by interpolation: refused with the one tensor."""
    for _ in range(2):  # timm keeps the matrix of a patch size between calls
        with pytest.raises(DataError, match=rf"1 tensors do not match.*\n  {name}: of another image size in the file"):
            match_backbone(clip_state(**change), tower(), Path("clip.pt"))


def test_a_missing_tensor_is_named_after_conversion() -> None:
    """A tower without one of its tensors: the error lists that tensor, not each of the names that timm does not have."""
    state = clip_state()
    del state["visual.ln_post.weight"]
    with pytest.raises(DataError, match=r"1 tensors do not match.*\n  missing: norm\.weight$"):
        match_backbone(state, tower(), Path("clip.pt"))
