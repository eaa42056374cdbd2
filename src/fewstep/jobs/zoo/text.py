"""Stage `text`: a masked language model, an autoregressive one beside it, or a few-step student of a masked one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fewstep.data.texts import load_text
from fewstep.discrete import MaskedDiffusion, TokenDenoiser
from fewstep.distillation.didi_instruct import DiDiInstruct, TokenEngine
from fewstep.distillation.sdtt import SelfDistillation, SelfDistillationEngine
from fewstep.errors import FewstepError
from fewstep.tasks.text.models import open_text_model, token_logits
from fewstep.train.stage import Count, Positive, Stage, StageBatch, StageConfig
from fewstep.train.tokens import token_stage
from fewstep.zoo.text import opens_in_float32
from fewstep.zoo.tokens import causal_language_model, masked_language_model, train_bpe


class TextConfig(StageConfig):
    """Settings of the text models; the defaults are those of the shipped `shakespeare-teacher`."""

    data: str = Field("shakespeare", description="'shakespeare', or a file of plain text")
    part: Literal["train", "judge", "all"] = Field("train", description="of the text")
    kind: Literal["masked", "causal"] = "masked"
    teacher: str = Field("", description="folder of a masked model, or a shipped one: trains a few-step student of it")
    method: Literal["didi", "sdtt"] = Field("didi", description="DiDi-Instruct or SDTT, of students")
    vocabulary: Count = Field(512, description="symbols of the tokenizer, the mask among them")
    length: Count = Field(48, description="tokens")
    width: Count = 128
    layers: Count = 3
    heads: Count = 4
    batch: Count = 32
    steps: Count = 1200
    learning_rate: Positive = 3e-3
    ema: float = Field(0.99, ge=0, lt=1)
    group: Count = Field(8, description="DiDi: samples whose rewards are normalised together")
    clip: Positive = Field(8.0, description="DiDi: of the discriminator's logits")
    keep: float = Field(0.05, ge=0, description="DiDi: weight of the divergence from the teacher")
    adversary_rate: Positive = Field(3.0, description="DiDi: learning rate of the discriminator, in the student's")
    rounds: tuple[int, ...] = Field((32, 16, 8), description="SDTT: steps of the student in each round")
    divergence: Literal["kl", "reverse"] = Field("kl", description="SDTT")


def build(config: TextConfig) -> Stage:
    """Cross-entropy of masked tokens weighted by 1/t (arXiv 2406.07524), of the next token, or a few-step method."""
    text = load_text(config.data, config.part)
    if config.teacher:
        return _student(config, text)
    tokenizer = train_bpe(text, config.vocabulary)
    draw = windows(tokenizer, text, config.length)
    torch.manual_seed(config.seed)
    make = masked_language_model if config.kind == "masked" else causal_language_model
    model = make(len(tokenizer), config.width, config.layers, config.heads, config.length)
    process = MaskedDiffusion(len(tokenizer), tokenizer.mask_token_id)
    parameter = next(model.parameters())

    def batch(generator: torch.Generator) -> StageBatch:
        return {"x": draw(config.batch, generator)}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x = given["x"].to(parameter.device)
        if config.kind == "causal":
            logits = model(input_ids=x[:, :-1]).logits.float()
            return F.cross_entropy(logits.transpose(1, 2), x[:, 1:]), {}
        return masked_loss(token_logits(model), process, x, generator), {}

    return Stage({"model": model}, batch, loss, _saver(model, tokenizer))


def masked_loss(
    network: Callable[[Tensor], Tensor], process: MaskedDiffusion, x: Tensor, generator: torch.Generator
) -> Tensor:
    """The evidence bound per token: -alpha'/(1 - alpha) times the cross-entropy of masks, at stratified times."""
    count = len(x)
    t = ((torch.arange(count) + torch.rand(count, generator=generator)) / count).clamp(min=1e-3)
    z = process.add_noise(x, t.to(x.device), torch.rand(x.shape, generator=generator).to(x.device))
    weight = (-process.slope(t) / (1 - process.alpha(t))).to(x.device).float()
    logits = network(z).float()
    logits = logits.masked_fill(torch.arange(process.tokens, device=x.device) == process.mask, -1e9)
    each = F.cross_entropy(logits.transpose(1, 2), x, reduction="none") * (z == process.mask)
    return (weight * each.sum(1)).mean() / x.shape[1]


def windows(tokenizer: Any, text: str, length: int) -> Callable[[int, torch.Generator], Tensor]:
    """Draws of so many tokens in a row, (count, length).

    Raises:
        FewstepError: the text is shorter.
    """
    stream = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(stream) <= length:
        raise FewstepError("the text has fewer tokens than a sample", value=len(stream), hint="Give a longer one.")

    def draw(count: int, generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(stream) - length, (count, 1), generator=generator)
        return stream[starts + torch.arange(length)]

    return draw


class TextDiscriminator(nn.Module):
    """Logits (B, L) above 0 where noised tokens (B, L) look real: a masked model's body with a head of its own.

    The head is two layers of bounded slope (spectral norm), as in arXiv 2509.25035.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.body = copy.deepcopy(network.base_model).requires_grad_(True)
        width = network.config.hidden_size
        norm = nn.utils.parametrizations.spectral_norm
        self.head = nn.Sequential(norm(nn.Linear(width, width)), nn.SiLU(), norm(nn.Linear(width, 1)))

    def forward(self, z: Tensor) -> Tensor:
        """Logits (B, L)."""
        found: Tensor = self.head(self.body(input_ids=z).last_hidden_state)
        return found.squeeze(2)


def _student(config: TextConfig, text: str) -> Stage:
    """The stage of a few-step student, which begins as the teacher."""
    opened = open_text_model(config.teacher)
    teacher, student = opened.network, copy.deepcopy(opened.network).requires_grad_(True)
    draw = windows(opened.tokenizer, text, min(config.length, opened.positions))
    torch.manual_seed(config.seed)
    mine, theirs = (TokenDenoiser(token_logits(net, opened.never()), opened.process) for net in (student, teacher))
    parameter, save = next(student.parameters()), _saver(student, opened.tokenizer)

    def batches(generator: torch.Generator) -> Tensor:
        return draw(config.batch, generator).to(parameter.device)

    if config.method == "sdtt":
        method = SelfDistillation(config.rounds, 2, config.divergence)
        engine = SelfDistillationEngine(method, mine, theirs, {"student": student}, teacher, batches)
        return token_stage(engine, config.steps, save)
    settings = DiDiInstruct(group=config.group, tau=(1.0, 1.0), clip=config.clip, teacher=config.keep)
    modules = {"student": student, "adversary": TextDiscriminator(teacher)}
    engine_ = TokenEngine(settings, mine, theirs, modules, batches)
    return token_stage(engine_, config.steps, save, {"teacher": teacher}, config.adversary_rate)


def _saver(model: Any, tokenizer: Any) -> Callable[[Path], None]:
    def save(out: Path) -> None:
        model.eval().half().save_pretrained(out)
        opens_in_float32(out)
        tokenizer.save_pretrained(out)

    return save
