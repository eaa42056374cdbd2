"""Few-step text: DiDi-Instruct and SDTT against their teacher and an autoregressive model of the same size.

    python benchmarks/text.py
    python benchmarks/text.py --seeds 0 --teacher 50 --students 5 --samples 8 --output runs/quick.json

A masked transformer learns three quarters of tinyshakespeare by pieces of words; its students learn from it on the same
text. The judge is an n-gram model of characters of another part of the text, which no network saw; the null is its word
on the last part, which nobody saw. Low temperature fakes what few steps need, so every number stands beside the entropy
of a sample's tokens, and the teacher is also sampled at lower temperatures. Seconds are of one thread, processor time.
Every training is a folder that resumes, every evaluation a unit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.texts import load_text
from fewstep.discrete import negative_evidence_bound, reveal_plan, sample_tokens
from fewstep.files import write_json
from fewstep.jobs import zoo
from fewstep.jobs.zoo.text import windows
from fewstep.metrics.intervals import seed_interval
from fewstep.metrics.ngrams import NGrams, distinct, fit_ngrams, unigram_entropy
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.tasks.text import TextModel, open_text_model

ORDER, LENGTH = 6, 48
TEACHER_STEPS, STUDENT_STEPS = (4, 8, 16, 64), (4, 8, 16)
COLDER = (0.9, 0.8, 0.7)
ORDERS = ("random", "confidence", "entropy")
METHODS = {"DiDi-Instruct": "didi", "SDTT": "sdtt"}
Numbers = dict[str, float]


def judge() -> NGrams:
    return fit_ngrams(load_text(part="judge"), ORDER)


def numbers(judged: NGrams, tokenizer: Any, tokens: Tensor) -> Numbers:
    """How surprised the judge is (nats per character, of all samples), entropy of a sample's tokens, repetition."""
    texts = [tokenizer.decode(row) for row in tokens.tolist()]
    joined = [text for text in texts if text]
    weights = torch.tensor([len(text) for text in joined], dtype=torch.float64)
    nats = torch.tensor([judged.nats(text) for text in joined], dtype=torch.float64)
    return {
        "nats": float((weights * nats).sum() / weights.sum()),
        "entropy": unigram_entropy(tokens.tolist()),
        "distinct": distinct(texts),
    }


def masked(judged: NGrams, folder: Path, steps: int, samples: int, **options: Any) -> dict[str, Any]:
    """A masked model by an ancestral plan or another."""
    model = open_text_model(folder)
    plan, begun = reveal_plan(model.process, steps, **options), time.process_time()
    tokens = sample_tokens(plan, model.denoiser(), seeds=range(samples), length=LENGTH)
    seconds = (time.process_time() - begun) / samples
    return {
        **numbers(judged, model.tokenizer, tokens), "evaluations": float(steps), "seconds": seconds,
        "example": model.decoded(tokens[:2]),
    }  # fmt: skip


@torch.no_grad()
def causal(judged: NGrams, folder: Path, samples: int, temperature: float = 1.0) -> dict[str, Any]:
    """An autoregressive model with its cache; the first token is drawn by how often it begins a window."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    first = windows(tokenizer, load_text(), 1)(samples, generator)
    begun, tokens, cache = time.process_time(), first, None
    for _ in range(LENGTH - 1):
        out = network(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[:, -1].double() / temperature
        logits[:, tokenizer.mask_token_id] = -torch.inf
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(1), 1, generator=generator)], 1)
    seconds = (time.process_time() - begun) / samples
    texts = [tokenizer.decode(row) for row in tokens.tolist()]
    return {
        **numbers(judged, tokenizer, tokens), "evaluations": float(LENGTH - 1), "seconds": seconds,
        "example": texts[:2],
    }  # fmt: skip


def alone(folder: Path, steps: int) -> dict[str, float]:
    """Seconds of one sample alone: what a person at a prompt waits for. Median of five."""
    model = open_text_model(folder)
    plan, denoiser = reveal_plan(model.process, steps), model.denoiser()
    return {"seconds": _median(lambda: sample_tokens(plan, denoiser, seeds=[0], length=LENGTH))}


def alone_causal(judged: NGrams, folder: Path) -> dict[str, float]:
    return {"seconds": _median(lambda: causal(judged, folder, 1), inner=True)}


def _median(call: Callable[[], Any], inner: bool = False) -> float:
    times = []
    for _ in range(5):
        begun = time.process_time()
        made = call()
        times.append(float(made["seconds"]) if inner else time.process_time() - begun)
    return sorted(times)[2]


@torch.no_grad()
def likelihoods(masked_folder: Path, causal_folder: Path) -> dict[str, float]:
    """Nats per token of the unseen part: the bound of the masked model, and the autoregressive model's own."""
    from transformers import LlamaForCausalLM

    model: TextModel = open_text_model(masked_folder)
    generator = torch.Generator().manual_seed(0)
    x = windows(model.tokenizer, load_text(part="test"), LENGTH)(64, generator)
    bound = negative_evidence_bound(model.denoiser(), x, generator, draws=8) / LENGTH
    network = LlamaForCausalLM.from_pretrained(causal_folder, dtype=torch.float32).eval()
    logits = network(input_ids=x[:, :-1]).logits.float()
    own = torch.nn.functional.cross_entropy(logits.transpose(1, 2), x[:, 1:])
    return {"masked, bound": float(bound.mean()), "autoregressive": float(own)}


def real(judged: NGrams, tokenizer: Any, samples: int) -> dict[str, Numbers]:
    """Windows of the text itself: of the unseen part, and of the part that the networks saw."""
    generator = torch.Generator().manual_seed(0)
    return {
        part: numbers(judged, tokenizer, windows(tokenizer, load_text(part=part), LENGTH)(samples, generator))
        for part in ("test", "train")
    }


def over_seeds(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and interval of every number."""
    found: dict[str, Any] = {}
    for key, first in each[0].items():
        if not isinstance(first, float):
            found[key] = first
            continue
        values = [float(one[key]) for one in each]
        found[key] = {"values": values, "mean": sum(values) / len(values)}
        if len(values) > 1:
            interval = seed_interval(torch.tensor(values))
            found[key] |= {"low": interval.low, "high": interval.high}
    return found


def trained(folder: Path, *overrides: str) -> Path:
    """The folder of a finished training."""
    return folder if (folder / "training.json").is_file() else zoo.run("text", overrides, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the students")
    parser.add_argument("--teacher", type=int, default=1200, help="updates of the teacher and the autoregressive model")
    parser.add_argument("--students", type=int, default=80, help="updates of the students")
    parser.add_argument("--rate", type=float, default=2e-4, help="of the students")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("results/text.json"))
    parser.add_argument("--folder", type=Path, default=Path("runs/text"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {key: value for key, value in vars(given).items() if key not in ("output", "folder")}
    settings |= {"length": LENGTH, "judge": f"characters, order {ORDER}"}
    long, short = (
        f"steps={given.teacher}",
        (f"steps={given.students}", f"learning_rate={given.rate}", "warmup=10", "device=cpu"),
    )
    teacher = trained(given.folder / "teacher", long, "device=cpu")
    words = trained(given.folder / "causal", long, "kind=causal", "device=cpu")
    students = {
        (name, seed): trained(
            given.folder / f"{method}-{seed}", f"teacher={teacher}", f"method={method}", f"seed={seed}", *short
        )
        for seed in given.seeds
        for name, method in METHODS.items()
    }  # fmt: skip
    judged, n = judge(), given.samples
    with Run(given.folder / "evaluation", settings, quiet=True) as run:
        unit: Callable[..., Any] = run.unit
        found: dict[str, Any] = {"teacher": {}, "autoregressive": {}, "orders": {}}
        for steps in TEACHER_STEPS:
            found["teacher"][str(steps)] = unit(f"teacher-{steps}", partial(masked, judged, teacher, steps, n))
            for t in COLDER if steps < 64 else ():
                name = f"{steps}, temperature {t:g}"
                made = unit(f"teacher-{steps}-{t:g}", partial(masked, judged, teacher, steps, n, temperature=t))
                found["teacher"][name] = made
        for order in ORDERS:
            made = unit(f"order-{order}", partial(masked, judged, teacher, 16, n, order=order))
            found["orders"][f"{order}, 16"] = made
        made = unit("order-remask", partial(masked, judged, teacher, 16, n, remask=0.5))
        found["orders"]["masking half again, 16"] = made
        for t in (1.0, *COLDER):
            made = unit(f"causal-{t:g}", partial(causal, judged, words, n, t))
            found["autoregressive"][f"temperature {t:g}"] = made
        found["students"] = {
            name: {
                str(steps): over_seeds([
                    unit(f"{method}-{seed}-{steps}", partial(masked, judged, students[name, seed], steps, n))
                    for seed in given.seeds
                ])
                for steps in STUDENT_STEPS
            }
            for name, method in METHODS.items()
        }  # fmt: skip
        found["alone"] = {
            **{f"masked, {k} steps": unit(f"alone-{k}", partial(alone, teacher, k)) for k in (8, 16, 64)},
            "autoregressive": unit("alone-causal", partial(alone_causal, judged, words)),
        }
        found["likelihood"] = unit("likelihood", partial(likelihoods, teacher, words))
        found["real"] = unit("real", lambda: real(judged, open_text_model(teacher).tokenizer, n))
    write_json(given.output, {"settings": settings, **found, "environment": environment()})


if __name__ == "__main__":
    main()
