from collections.abc import Callable

import pytest
import torch


def unet(**changes: object) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    settings: dict[str, object] = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def sdxl_unet() -> torch.nn.Module:
    return unet(
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        use_linear_projection=True,
    )


def flux() -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=False,
    ).eval()  # fmt: skip


def pixart() -> torch.nn.Module:
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=32, sample_size=8, patch_size=2, num_embeds_ada_norm=1000, caption_channels=32,
        norm_type="ada_norm_single", use_additional_conditions=False,
    ).eval()  # fmt: skip


def call(model: torch.nn.Module, seed: int = 1) -> torch.Tensor:
    """One network evaluation of any of the models above on fixed random inputs."""
    generator = torch.Generator().manual_seed(seed)
    kind, dtype = type(model).__name__, model.dtype

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    with torch.no_grad():
        if kind == "FluxTransformer2DModel":
            return model(
                hidden_states=draw(1, 16, 4), encoder_hidden_states=draw(1, 6, 32), pooled_projections=draw(1, 32),
                timestep=torch.tensor([0.5]).to(dtype), img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(6, 3),
            ).sample  # fmt: skip
        if kind == "PixArtTransformer2DModel":
            added = {"resolution": None, "aspect_ratio": None}
            return model(
                draw(2, 4, 8, 8), encoder_hidden_states=draw(2, 6, 32), timestep=torch.tensor([10, 20]),
                added_cond_kwargs=added,
            ).sample  # fmt: skip
        extra = {}
        if model.config.addition_embed_type == "text_time":
            extra = {"added_cond_kwargs": {"text_embeds": draw(2, 16), "time_ids": torch.ones(2, 6)}}
        return model(draw(2, 4, 8, 8), 10, draw(2, 5, 16), **extra).sample


MODELS = {"sd": unet, "sdxl": sdxl_unet, "flux": flux, "pixart": pixart}


LARGER = pytest.param("sdxl", marks=pytest.mark.thorough)  # the same kinds of layers as sd, half as many again


@pytest.fixture(params=["flux", "pixart", "sd", LARGER])
def build(request: pytest.FixtureRequest) -> Callable[[], torch.nn.Module]:
    """Builder of a tiny random model, one of the architectures that people use."""
    return MODELS[request.param]


@pytest.fixture
def evaluate() -> Callable[..., torch.Tensor]:
    """One network evaluation on fixed inputs."""
    return call


@pytest.fixture
def build_unet() -> Callable[[], torch.nn.Module]:
    """Builder of the tiny SD-like UNet."""
    return unet
