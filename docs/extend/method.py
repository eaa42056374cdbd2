"""A distillation method: one call of the student learns what the teacher makes of the same noise in several steps."""

import torch

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.method import method
from fewstep.distillation.parts import Chain, Method, part, preset
from fewstep.process import Process
from fewstep.testing.toy import Toy
from fewstep.testing.training import train_toy
from fewstep.transition import ddim_path


@part
def jump(steps: int) -> Term:
    """The term: mean square between the student's first clean prediction and the teacher's last."""

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        process = networks.teacher.process
        noise = torch.randn(batch.size, *batch.shape, generator=generator)
        times = torch.linspace(process.noisiest, 0, steps + 1, dtype=torch.float64)
        with torch.no_grad():
            *_, end = ddim_path(process, lambda x, t: networks.teacher(x, t, batch.condition), noise, times)
        start = torch.full((batch.size,), process.noisiest, dtype=torch.float64)
        value = (networks.student(noise, start, batch.condition) - end).square().mean()
        return value, {"error": value.detach()}

    return loss


@preset("teacher_jump", guidance=False)
def teacher_jump(process: Process, *, teacher_steps: int = 8) -> Method:
    """Regress the end of the teacher's path from the same noise."""
    return Method({"jump": jump(teacher_steps)}, Chain((process.noisiest,)))


toy = Toy(pretraining=300)
made = method("teacher_jump", toy.process, teacher_steps=8)
short, long = (train_toy(toy, made, steps=n, batch=64).distance for n in (1, 60))
print(f"distance after one update {short:.0f}, after 60 {long:.0f}")
