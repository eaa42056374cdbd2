"""A critic that is told which call of the student it follows: what it is told, and why."""

from dataclasses import replace

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.discriminator import samples
from fewstep.distillation.method import method
from fewstep.distillation.parts import denoising_loss, distribution_matching, score_distillation
from fewstep.distillation.step_condition import StepConditioned, time_layers
from fewstep.distillation.times import fixed_times
from fewstep.errors import FewstepError
from fewstep.pipelines.shared import SharedBase
from fewstep.prediction import Prediction
from fewstep.testing.digits import DigitNetwork
from fewstep.testing.mixture import Mixture
from fewstep.testing.toy import PointNetwork, Toy
from fewstep.testing.training import assembled_engine, distil
from tests.distillation.gaussians import FLOW, batch_of, cast_of, generator, made_of, normal

VELOCITY = Prediction("velocity")
FEW = ("sid_few_step", "dmd2", "decoupled_dmd", "flash_dmd")
SMALL = {"sid_few_step": {}, "decoupled_dmd": {"guidance": 1.0}, "dmd2": {"guidance": 1.0, "modules": ("rest.2",)}}
SMALL["flash_dmd"] = {"guidance": 1.0, "source": samples}


def two_modes():
    means = torch.tensor([[-1.0], [1.0]])
    network = Mixture(torch.full((2,), 0.5), means, torch.full((2, 1), 0.04)).network(FLOW, VELOCITY)
    return Denoiser(lambda x, time: network(x, time), FLOW, VELOCITY)


def of_its_own_call():
    """The exact critic of a student whose call 0 makes the left mode alone and call 1 the right one."""
    left, right = normal(-1.0, 0.04), normal(1.0, 0.04)

    def network(x, time, call):
        return torch.where(call[:, None] == 0, left.network(x, time), right.network(x, time))

    return Denoiser(network, FLOW, VELOCITY, calls=2)


def of_two_calls(size):
    call = torch.arange(size) % 2
    x = (2.0 * call[:, None] - 1) + 0.2 * torch.randn(size, 1, generator=generator(), dtype=torch.float64)
    return replace(made_of(x.requires_grad_(True)), index=call), call


def test_calls_whose_mixture_is_right_are_wrong_to_a_critic_that_is_told_alone():
    """Each call makes one of the teacher's two modes. The exact critic of the mixture is the teacher: no gradient."""
    teacher, (made, call) = two_modes(), of_two_calls(64)
    branch = score_distillation(distribution_matching(), fixed_times((0.8,)))
    pulls = []
    for critic in (two_modes(), of_its_own_call()):
        loss, _ = branch(cast_of(teacher, critic), batch_of(64), made, generator())
        pulls.append(torch.autograd.grad(loss, made.clean, retain_graph=True)[0])
    assert float(pulls[0].abs().max()) < 1e-12
    down = -pulls[1][:, 0]
    assert bool((down[call == 0] > 0).all())  # from the left mode to the right one
    assert bool((down[call == 1] < 0).all())


def test_the_exact_critic_of_each_call_is_the_minimum_of_its_loss():
    made, _ = of_two_calls(4000)
    term, exact = denoising_loss(fixed_times((0.8,))), of_its_own_call()

    def loss(critic):
        return float(term(cast_of(two_modes(), critic), batch_of(4000), made, generator(1))[0])

    swapped = replace(exact, network=lambda x, time, call: exact.network(x, time, 1 - call))
    assert loss(exact) < loss(two_modes()) < loss(swapped)


def test_whoever_does_not_say_the_call_is_refused():
    critic = of_its_own_call()
    x, t = torch.zeros(4, 1), torch.full((4,), 0.5)
    with pytest.raises(FewstepError, match="which call"):
        critic(x, t)
    told = critic.following(torch.tensor([0, 1]))
    assert torch.equal(told(x, t)[:2], told(x, t)[2:])  # two copies of the batch
    assert two_modes().following(torch.tensor([0])).call is None


def networks():
    """(network, its arguments): of the beds, of diffusers, and one adapter of a shared base."""
    common = {"sample_size": 8, "in_channels": 2}
    dit = {**common, "out_channels": 2, "patch_size": 4, "num_layers": 2, "num_attention_heads": 2}
    unet = {**common, "out_channels": 2, "norm_num_groups": 4, "layers_per_block": 1, "block_out_channels": (8,)}
    unet |= {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    torch.manual_seed(0)
    x, t, c = torch.randn(4, 2, 8, 8), torch.full((4,), 300.0), torch.arange(4)
    transformer = DiTTransformer2DModel(**dit, attention_head_dim=8, num_embeds_ada_norm=10)
    transformer.requires_grad_(True)
    yield "points", PointNetwork(2, 8), {"x": torch.randn(4, 2), "time": t}
    yield "digits", DigitNetwork(8), {"x": torch.randn(4, 64), "time": t, "class_labels": c}
    yield "dit", transformer.eval(), {"hidden_states": x, "timestep": t.long(), "class_labels": c}
    yield "unet", UNet2DModel(**unet).eval(), {"sample": x, "timestep": t}


@pytest.mark.parametrize(("name", "network", "given"), [pytest.param(*n, id=n[0]) for n in networks()])
def test_it_begins_as_the_network_inside_and_then_tells_calls_apart(name, network, given):
    def value(module, **more):
        found = module(**given, **more)
        return (found if isinstance(found, torch.Tensor) else found[0]).detach()

    for layer in network.modules():  # networks begin at zero output
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.3)
    before, call = value(network), torch.tensor([0, 1, 2, 1])
    made = StepConditioned(network, 3)
    assert torch.equal(value(made, call=call), before)
    for vector in made.vectors:
        nn.init.normal_(vector.weight)
    after = value(made, call=call)
    assert not torch.allclose(after, before)
    assert not torch.allclose(after, value(made, call=1 * (call == 1)))
    assert torch.equal(value(network), before)  # nothing stays on the network inside
    assert len(made.vectors) == len(time_layers(network))


def test_of_a_shared_base_only_the_told_role_hears_it():
    _, base, given = next(n for n in networks() if n[0] == "dit")
    shared = SharedBase(base, 2)
    critic, student = StepConditioned(shared.role("critic"), 2), shared.role("student")
    before = student(**given)[0]
    nn.init.ones_(critic.vectors[0].weight)
    critic(**given, call=torch.zeros(4, dtype=torch.long))
    assert torch.equal(student(**given)[0], before)
    assert {name.partition(".")[0] for name in critic.state_dict()} == {"network", "vectors"}
    shared.close()


def test_a_network_without_a_time_embedding_is_refused():
    with pytest.raises(FewstepError, match="no time embedding"):
        StepConditioned(nn.Linear(2, 2), 4)


@pytest.mark.parametrize("name", FEW)
def test_presets_tell_the_critic_when_asked(name):
    toy = Toy(width=8, pretraining=0)
    for told in (False, True):
        made = method(name, toy.process, steps=3, step_condition=told, **SMALL[name])
        assert made.critic.calls == 3 * told
        engine = assembled_engine(toy, made, 8)
        assert isinstance(engine.modules["critic"], StepConditioned) is told
    engine, _ = distil(toy, made, steps=3, batch=16, learning_rate=1e-2)
    moved = engine.modules["critic"].vectors[0].weight.detach()
    assert bool((moved.abs().sum(1)[: 1 if name == "flash_dmd" else 3] > 0).all())  # Flash matches the first half


def test_a_told_critic_is_pulled_towards_the_student_too():
    toy = Toy(width=8, pretraining=0)
    made = method("flash_dmd", toy.process, steps=2, step_condition=True, pull=0.5, **SMALL["flash_dmd"])
    engine = assembled_engine(toy, made, 8)
    engine.modules["student"].first.bias.data.add_(2.0)
    before = engine.modules["critic"].network.first.bias.detach().clone()
    engine.after(1)
    torch.testing.assert_close(engine.modules["critic"].network.first.bias.data, before + 1.0)
