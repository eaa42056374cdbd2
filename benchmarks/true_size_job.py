"""The main job on pipelines of true size: memory and seconds of every stage, within a limit of 16 GB.

    nice -n 5 python benchmarks/true_size_job.py
    python benchmarks/true_size_job.py --tiny --output quick.json    # the same stages on small networks

The configurations are those of Stable Diffusion 1.5 and SDXL, the weights random, stored as float16, opened as float32.
Every part runs in a process of its own with one thread. Its memory is anonymous memory (Linux), sampled every 20 ms;
`resident` is the largest resident set of the process, which counts pages of the files that it reads, too.

- `sd15, the job`: `fewstep run q-sched` in W4A8 on one prompt with a few candidates, nothing measured on held-out ones.
- `sd15, diffusers`: its result opened by diffusers, and one picture.
- `sd15, read in low bits`, `sdxl, ...`: a pipeline whose network is quantized while it is read, and one step.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from distillation_true_size import sd15, sdxl
from quant_true_size import anonymous_bytes

import fewstep as fs
from fewstep import recipes
from fewstep.files import read_json, write_json, write_text
from fewstep.jobs.q_sched import run as run_q_sched
from fewstep.runs import Run
from fewstep.runs.environment import environment

LIMIT = 16e9
"""Bytes of the machine that everything is to fit in."""
SCHEME, STEPS, PROMPT, CANDIDATES = "w4a8", 1, "a red cat", 4
EVERY = 0.02
"""Seconds between two looks at the memory."""
STAGES = {
    "plan": "read plan",
    "quantize": "quantize",
    "search-quantized": "search",
    "verdict": "search",
    "pipeline": "save",
}
"""What the units of the job are called here."""

Mark = Callable[..., None]
"""mark(stage, time=now): the stage has ended."""

# --- pipelines ------------------------------------------------------------------------------------------------------


def tokenizer(folder: Path) -> Any:
    """CLIP's, with letters for words."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [chr(c) for c in range(97, 123)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    write_json(folder / "vocab.json", {token: k for k, token in enumerate(tokens)})
    write_text(folder / "merges.txt", "#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def text_encoder(width: int, layers: int, heads: int, act: str, tiny: bool, projection: bool = False) -> Any:
    """One of CLIP's."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size = (16, 2, 2) if tiny else (width, layers, heads)
    config = CLIPTextConfig(
        hidden_size=size[0], intermediate_size=4 * size[0], num_hidden_layers=size[1], num_attention_heads=size[2],
        projection_dim=8 if tiny else width, vocab_size=54 if tiny else 49408, hidden_act=act, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def autoencoder(tiny: bool) -> Any:
    from diffusers import AutoencoderKL

    widths = (8, 8) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=widths, layers_per_block=1 if tiny else 2, norm_num_groups=4 if tiny else 32,
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        sample_size=16 if tiny else 512,
    )  # fmt: skip


def write(kind: str, folder: Path, tiny: bool) -> dict[str, int]:
    """A pipeline's folder with random weights in float16; the number of weights of every part."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        pipe = pipeline(kind, folder, tiny)
    finally:
        torch.set_default_dtype(usual)
    pipe.save_pretrained(folder / kind, max_shard_size="1GB")
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in modules.items()}


def pipeline(kind: str, folder: Path, tiny: bool) -> Any:
    """The pipeline of a kind, in the default type."""
    import diffusers

    torch.manual_seed(0)
    words = tokenizer(folder / f"words-{kind}")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip
    parts: dict[str, Any] = {"vae": autoencoder(tiny), "scheduler": scheduler, "tokenizer": words}
    parts["text_encoder"] = text_encoder(768, 12, 12, "quick_gelu", tiny)
    if kind == "sd15":
        more: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(**parts, unet=sd15(tiny), **more)
    second, unet = text_encoder(1280, 32, 20, "gelu", tiny, projection=True), sdxl(tiny)
    if tiny:  # it takes both encoders' states side by side
        unet = type(unet).from_config({**unet.config, "cross_attention_dim": 32})
    return diffusers.StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=words, unet=unet)


# --- stages ---------------------------------------------------------------------------------------------------------


def job(mark: Mark, folder: Path, out: Path) -> None:
    """The whole main job; its stages are what lies between the ends of its units."""
    recipe = recipes.resolve({
        "kind": "q-sched", "model": str(folder), "scheme": SCHEME, "steps": STEPS, "batch": 1,
        "rewards": {"alignment": "none", "quality": "sharpness"},
        "search": {
            "prompts": [PROMPT], "count": 1, "seeds": [1], "budget": 1 + CANDIDATES, "held_out": 0,
            "landscape": False,
        },
        "evaluation": {"count": 0},
    })  # fmt: skip
    with Run(out, recipe.plain(), quiet=True) as run:
        run_q_sched(recipe, run)
        units = [event for event in run.events() if event["event"] == "finished"]
    mark("open", units[0]["time"] - units[0]["seconds"])
    for unit in units:
        mark(STAGES[unit["unit"]], unit["time"])
    mark("report")


def in_diffusers(mark: Mark, folder: Path) -> None:
    """What the job saved, opened by diffusers alone."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder / "artifacts" / "pipeline")
    mark("load in diffusers")
    pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, output_type="np")
    mark("one picture")


def read_low(mark: Mark, folder: Path) -> None:
    """A pipeline whose network is quantized while it is read, and one step without guidance."""
    pipe = fs.load(folder, scheme=SCHEME)
    mark("open and quantize")
    pipe(PROMPT, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    mark("one step")


# --- measuring ------------------------------------------------------------------------------------------------------


@contextmanager
def watched() -> Iterator[list[tuple[float, int]]]:
    """(time, bytes of anonymous memory), again and again while the context is open."""
    seen, done = [(time.time(), anonymous_bytes())], threading.Event()

    def look() -> None:
        while not done.wait(EVERY):
            seen.append((time.time(), anonymous_bytes()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def measured(part: Callable[..., None], *given: Any) -> dict[str, Any]:
    """Stages of a part with their seconds and the most memory that they took."""
    marks: list[tuple[str, float]] = []
    with watched() as seen:
        before = begun = seen[0][0]
        part(lambda stage, at=0.0: marks.append((stage, at or time.time())), *given)
    stages: dict[str, dict[str, float]] = {}
    for stage, at in marks:
        row = stages.setdefault(stage, {"seconds": 0.0, "peak_bytes": 0})
        row["seconds"] += at - before
        row["peak_bytes"] = max([row["peak_bytes"], *(size for moment, size in seen if before <= moment <= at)])
        before = at
    peak = max(size for _, size in seen)
    return {
        "stages": [{"stage": stage, **row} for stage, row in stages.items()], "seconds": before - begun,
        "peak_bytes": peak, "resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "fits": peak < LIMIT,
    }  # fmt: skip


def alone(function: Callable[..., Any], *given: Any) -> Any:
    """In a fresh process: memory that an earlier part left behind would count for the next."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return pool.submit(function, *given).result()


def all_parts(place: Path, tiny: bool) -> dict[str, Any]:
    """Every part, with what it took; a pipeline is deleted as soon as it is not needed."""
    found: dict[str, Any] = {"weights": {}, "parts": {}}

    def note(name: str, *part: Any) -> None:
        found["parts"][name] = alone(measured, *part)
        print(name, {s["stage"]: (round(s["seconds"]), s["peak_bytes"]) for s in found["parts"][name]["stages"]})

    for kind in ("sd15", "sdxl"):
        found["weights"][kind] = alone(write, kind, place, tiny)
        if kind == "sd15":
            note("sd15, the job", job, place / kind, place / "run")
            found["job"] = {key: read_json(place / "run" / "results.json")[key] for key in ("search", "quantization")}
            note("sd15, diffusers", in_diffusers, place / "run")
        note(f"{kind}, read in low bits", read_low, place / kind)
        shutil.rmtree(place / kind)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, help="where pipelines are written meanwhile: 10 GB")
    parser.add_argument("--output", type=Path, default=Path("results/true-size-job.json"))
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.folder) as place:
        found = all_parts(Path(place), told.tiny)
    settings = {"scheme": SCHEME, "steps": STEPS, "candidates": CANDIDATES, "limit_bytes": LIMIT, "tiny": told.tiny}
    write_json(told.output, {"environment": environment(), **settings, **found}, over="all")


if __name__ == "__main__":
    main()
