"""Which ways to run Z-Image fit into how much memory, counted on the meta device.

    python benchmarks/z_image_memory.py

The true sizes: the transformer of the installed diffusers, a Qwen3-4B, the autoencoder of FLUX. Activations of a
1024x1024 picture are estimated: the widest products of one block for 4096 + 512 tokens, and four maps of the decoder's
last stage.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from fewstep.files import write_json
from fewstep.pipelines.memory import FULL, first_that_fits, memory_options, part_bytes
from fewstep.runs import environment

TOKENS, WIDTH, INNER = 4096 + 512, 3840, 10240
BESIDE = {
    "transformer": TOKENS * (3 * INNER + 4 * WIDTH) * 2,
    "text_encoder": 512 * (3 * 9728 + 4 * 2560) * 2,
    "vae": 4 * 128 * 1024**2 * 2,
}
CANDIDATES = (
    {},
    {"text_encoder": "w8a16"},
    {"text_encoder": "w4a16"},
    {"transformer": "w8a8"},
    {"transformer": "w8a8", "text_encoder": "w8a16"},
    {"transformer": "w4a8", "text_encoder": "w8a16"},
    {"transformer": "w4a8", "text_encoder": "w4a16"},
)
BUDGETS = (24, 16, 12, 8, 6)


def true_size() -> dict[str, nn.Module]:
    """The parts of the 6 B model without weights."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), latent_channels=16, use_quant_conv=False,
            use_post_quant_conv=False, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
        )  # fmt: skip
        encoder = Qwen3Model(Qwen3Config(
            vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128,
        ))  # fmt: skip
        return {"transformer": ZImageTransformer2DModel(), "text_encoder": encoder, "vae": vae}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/z-image-memory.json"))
    given = parser.parse_args()
    parts = true_size()
    options = memory_options(parts, CANDIDATES, BESIDE, rules={"text_encoder": ()})
    rows = [{"schemes": dict(o.schemes), "offload": o.offload, "peak": o.peak} for o in options]
    chosen = {str(gb): options.index(first_that_fits(options, gb * 10**9)) for gb in BUDGETS}
    sizes = {
        name: {s: part_bytes(part, s, rules=() if name == "text_encoder" else None) for s in (FULL, "w8a8", "w4a8")}
        for name, part in parts.items()
    }
    write_json(given.output, {
        "parts": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "sizes": sizes, "beside": BESIDE, "options": rows, "chosen": chosen, "environment": environment(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
