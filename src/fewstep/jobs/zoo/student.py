"""Stage `student`: latent consistency distillation of the teacher into a few-step model, guidance baked in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from fewstep.pipelines.shared import SharedBase, SharedRole
from fewstep.train.latents import encode_pictures, open_pipeline
from fewstep.train.stage import Count, Fraction, NotNegative, Positive, Stage, StageBatch, StageConfig
from fewstep.zoo.text import opens_in_float32, tokens_of
from fewstep.zoo.unet import lcm_scheduler, pipeline


class StudentConfig(StageConfig):
    """Settings of the student."""

    teacher: str = Field("runs/train-teacher", description="folder of stage teacher")
    steps: Count = 400
    batch: Count = 64
    learning_rate: Positive = 3e-4
    weight_decay: NotNegative = 0.0
    warmup: int = 20
    ema: Fraction = 0.99
    guidance: float = Field(1.5, ge=1, description="scale g of uncond + g * (cond - uncond), fixed and baked in")
    skip: Count = Field(20, description="training times that one step of the DDIM solver covers")
    target_decay: Fraction = Field(0.95, description="decay of the target network")
    huber: Positive = Field(1e-3, description="c of sqrt(d^2 + c^2) - c")
    init: str = Field("", description="folder of an earlier student to begin as; empty: begin as the teacher")
    lora: int = Field(0, ge=0, description="rank of adapters on what it begins as, stored in lora/; 0: all weights")


def build(config: StudentConfig) -> Stage:
    """Algorithm 1 of arXiv 2310.04378 with one fixed guidance scale and an uninformed guidance embedding."""
    images, captions = config.pictures()
    pipe = open_pipeline(config.teacher)
    cuda = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    tokens = tokens_of(pipe.tokenizer, captions)
    latents = encode_pictures(pipe.vae, images, captions, tokens, device)
    empty = tokens_of(pipe.tokenizer, [""])
    text, teacher = pipe.text_encoder.to(device).eval(), pipe.unet.to(device).eval()
    teacher.to(memory_format=torch.channels_last)
    base = open_pipeline(config.init).unet.to(device, memory_format=torch.channels_last) if config.init else teacher
    student, target = _network(base, config.lora), _network(base, config.lora).requires_grad_(False)
    scheduler = lcm_scheduler(pipe.scheduler.config.prediction_type)
    law = ConsistencyFunction(scheduler, device)
    with torch.no_grad():
        nothing = text(empty.to(device)).last_hidden_state

    def batch(generator: torch.Generator) -> StageBatch:
        clean, ids = latents.draw(config.batch, empty[0], 0.0, generator)
        # the scheduler's own grid, 19, 39, ..., 999 for 50 original times
        stride = 1000 // scheduler.config.original_inference_steps
        index = torch.randint(1, 1 + 1000 // stride, (config.batch,), generator=generator)
        return {"clean": clean, "tokens": ids, "time": index * stride - 1}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        noise = torch.randn(given["clean"].shape, generator=generator).to(device)
        clean, time = given["clean"].to(device), given["time"].to(device)
        earlier = (time - config.skip).clamp(min=0)
        noisy = law.alpha(time) * clean + law.sigma(time) * noise
        with torch.no_grad():
            states = text(given["tokens"].to(device)).last_hidden_state
            both = torch.cat([states, nothing.expand_as(states)])
            v, v_empty = teacher(noisy.repeat(2, 1, 1, 1), time.repeat(2), both).sample.float().chunk(2)
            v = v_empty + config.guidance * (v - v_empty)
            solved = law.ddim(v, noisy, time, earlier)
            wanted = law(target(solved, earlier, states).sample.float(), solved, earlier)
        got = law(student(noisy, time, states).sample.float(), noisy, time)
        distance = (got - wanted).square()
        value = ((distance + config.huber**2).sqrt() - config.huber).mean()
        return value, {"squared": float(distance.detach().mean())}

    @torch.no_grad()
    def after(step: int) -> None:
        for slow, fast in zip(target.parameters(), student.parameters(), strict=True):
            slow.lerp_(fast, 1 - config.target_decay)

    def save(out: Path) -> None:
        unet: Any = student
        if isinstance(student, SharedRole):
            student.half().inner.save_lora_adapter(out / "lora", adapter_name=student.name)
            student.float()
            unet = student.shared.merged()
        unet.to(memory_format=torch.contiguous_format)
        parts = (pipe.vae.half(), text.half(), pipe.tokenizer, unet.eval().half())
        pipeline(*parts, scheduler).save_pretrained(out)
        opens_in_float32(out / "text_encoder")

    frozen = {"vae": pipe.vae, "text": text, "teacher": teacher}
    return Stage({"unet": student}, batch, loss, save, frozen=frozen, state={"target": target}, after=after)


def _network(base: nn.Module, rank: int) -> nn.Module:
    """A network that begins as the base: a copy, or a new adapter on a copy."""
    copied = copy.deepcopy(base)
    return SharedBase(copied, rank, convolutions=True).role("student") if rank else copied


class ConsistencyFunction:
    """The consistency function of a v-predicting network with the boundary scaling of diffusers' LCMScheduler."""

    def __init__(self, scheduler, device: torch.device) -> None:  # type: ignore[no-untyped-def]
        self.cumulative = scheduler.alphas_cumprod.to(device)
        self.scaling, self.sigma_data = scheduler.config.timestep_scaling, 0.5

    def alpha(self, time: torch.Tensor) -> torch.Tensor:
        """Signal coefficient at times (B,), as (B, 1, 1, 1)."""
        return self.cumulative[time].sqrt()[:, None, None, None]

    def sigma(self, time: torch.Tensor) -> torch.Tensor:
        """Noise coefficient at times (B,), as (B, 1, 1, 1)."""
        return (1 - self.cumulative[time]).sqrt()[:, None, None, None]

    def ddim(self, v: torch.Tensor, noisy: torch.Tensor, time: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """One DDIM step of the v-prediction `v` from `time` to `to`."""
        sample = self.alpha(time) * noisy - self.sigma(time) * v
        noise = self.alpha(time) * v + self.sigma(time) * noisy
        return self.alpha(to) * sample + self.sigma(to) * noise

    def __call__(self, v: torch.Tensor, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """f(z, t) = c_skip(t) z + c_out(t) x0(z, v, t), equal to z at t = 0 (eq. 9 of arXiv 2310.04378)."""
        scaled = (self.scaling * time.float())[:, None, None, None]
        skip = self.sigma_data**2 / (scaled**2 + self.sigma_data**2)
        out = scaled / (scaled**2 + self.sigma_data**2).sqrt()
        return skip * noisy + out * (self.alpha(time) * noisy - self.sigma(time) * v)
