"""Plans run in place of the sampling loops of Boltz and Protenix, on small denoisers with their interface."""

import types

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.executor import Noise
from fewstep.tasks.proteins import SAMPLERS, rmsd, sampling_by, structure_plan, superposed
from fewstep.tasks.proteins.scores import distances

ATOMS, TOKENS = 12, 5
TEMPLATE = 8 * torch.randn(ATOMS, 3, generator=torch.Generator().manual_seed(0))


def denoised(x, sigma, where):
    """A denoiser without direction: the template, superposed on the state, and a little of the state."""
    target = superposed((TEMPLATE * where).expand_as(x), x)
    return target + 0.02 * (x - x.mean(-2, keepdim=True)) / (1 + sigma)


class Boltz2:
    """`AtomDiffusion` as Boltz-2 has it: a float sigma, conditions as one mapping, a tensor back."""

    alignment_reverse_diff = True
    coordinate_augmentation = True

    def __init__(self):
        self.calls = []

    def preconditioned_network_forward(self, noised_atom_coords, sigma, network_condition_kwargs):
        assert isinstance(sigma, float)
        count = network_condition_kwargs["multiplicity"]
        assert len(noised_atom_coords) == count * len(network_condition_kwargs["s_trunk"])
        self.calls.append((sigma, len(noised_atom_coords)))
        where = network_condition_kwargs["s_trunk"].repeat_interleave(count, 0).reshape(-1, 1, 1)
        return denoised(noised_atom_coords, sigma, where)

    def sample(self, atom_mask, num_sampling_steps=None, multiplicity=1, **rest):
        return "their own"


class Boltz1(Boltz2):
    """Boltz-1: a cache, tokens beside the coordinates, and a confidence that is told of them."""

    use_inference_model_cache = True
    accumulate_token_repr = True

    def preconditioned_network_forward(self, noised_atom_coords, sigma, network_condition_kwargs, training=True):
        assert training is False
        network_condition_kwargs["model_cache"]["seen"] = True
        found = super().preconditioned_network_forward(noised_atom_coords, sigma, network_condition_kwargs)
        return found, torch.full((len(found), TOKENS, 4), sigma)

    def c_noise(self, sigma):
        return (sigma / 16).log() / 4

    def out_token_feat_update(self, times, acc_a, next_a):
        assert times.shape == (len(next_a),)
        return acc_a + next_a


@pytest.mark.parametrize("kind", [Boltz1, Boltz2])
def test_boltz_samples_by_a_plan_and_has_its_own_sampler_back(kind):
    module, plan = kind(), structure_plan("boltz-2", 4, gamma=0.0, step_scale=1.0)
    mask = torch.ones(2, ATOMS)
    trunk = torch.tensor([1.0, 1.5])
    with sampling_by(plan, module):
        found = module.sample(
            mask, num_sampling_steps=200, multiplicity=3, max_parallel_samples=2, steering_args=None, s_trunk=trunk
        )
    assert module.sample(mask) == "their own"
    assert "sample" not in vars(module)
    x = found["sample_atom_coords"]
    assert x.shape == (6, ATOMS, 3)
    assert float(x.mean(1).abs().max()) < 1.0  # they do not drift away
    assert [sigma for sigma, _ in module.calls][::2] == pytest.approx([float(row.time) for row in plan.rows])
    assert [count for _, count in module.calls][:2] == [4, 2]  # two chains, two and one of their samples
    for k, scale in enumerate((1.0, 1.0, 1.0, 1.5, 1.5, 1.5)):
        assert float(rmsd(x[k : k + 1], scale * TEMPLATE)) < 0.5  # what a hundredth of the state leaves
    told = found["diff_token_repr"]
    if kind is Boltz1:
        assert float(told[0, 0, 0]) == pytest.approx(sum(float(row.time) for row in plan.rows), rel=1e-5)
    else:
        assert told is None


def test_boltz_gives_what_its_own_loop_gives_up_to_a_motion():
    plan = structure_plan("boltz-2", 5)
    module = Boltz2()
    with sampling_by(plan, module, seeds=[7]):
        found = module.sample(torch.ones(1, ATOMS), s_trunk=torch.ones(1))["sample_atom_coords"]
    stream = Noise([7])
    x = stream.draw((ATOMS, 3)) * plan.prior_scale  # already raised: one draw stands for both
    for k, now in enumerate(SAMPLERS["boltz-2"].levels(5)[1:]):
        raised = float(plan.rows[k].time)
        clean = denoised(x, raised, 1.0)
        x = x + 1.5 * (now - raised) * (x - clean) / raised
        if k + 1 < plan.steps and float(plan.rows[k].noise):
            x = x + float(plan.rows[k].noise) * stream.draw((ATOMS, 3))
    torch.testing.assert_close(distances(found), distances(x), rtol=1e-3, atol=2e-2)


def test_boltz_steering_is_refused():
    module = Boltz2()
    with sampling_by(structure_plan(), module), pytest.raises(FewstepError, match="does not steer"):
        module.sample(torch.ones(1, ATOMS), steering_args={"fk_steering": True}, s_trunk=torch.ones(1))


@pytest.mark.parametrize(("batch", "chunk"), [((), None), ((2,), 2)])
def test_protenix_samples_by_a_plan(batch, chunk):
    sizes = []

    def denoise_net(
        x_noisy, t_hat_noise_level, input_feature_dict, s_inputs, s_trunk, z_trunk, chunk_size, inplace_safe
    ):
        assert x_noisy.shape[:-3] == s_inputs.shape[:-2] == batch
        assert t_hat_noise_level.shape == x_noisy.shape[:-2]
        assert (chunk_size, inplace_safe) == (4, True)
        sizes.append(x_noisy.shape[-3])
        flat = x_noisy.reshape(-1, ATOMS, 3)
        return denoised(flat, float(t_hat_noise_level.flatten()[0]), 1.0).reshape(x_noisy.shape)

    own = lambda **given: "their own"  # noqa: E731
    module = types.SimpleNamespace(sample_diffusion=own)
    arguments = {
        "denoise_net": denoise_net,
        "input_feature_dict": {"atom_to_token_idx": torch.zeros(ATOMS, dtype=torch.long)},
        "s_inputs": torch.zeros(*batch, TOKENS, 4), "s_trunk": None, "z_trunk": None,
        "noise_schedule": torch.linspace(2560, 0, 201), "N_sample": 3, "gamma0": 0.8, "gamma_min": 1.0,
        "noise_scale_lambda": 1.003, "step_scale_eta": 1.5, "diffusion_chunk_size": chunk,
        "inplace_safe": True, "attn_chunk_size": 4,
    }  # fmt: skip
    with sampling_by(structure_plan("protenix-mini", 2), module):
        x = module.sample_diffusion(**arguments)
    assert module.sample_diffusion is own
    assert x.shape == (*batch, 3, ATOMS, 3)
    assert sizes == ([3, 3] if chunk is None else [2, 1, 2, 1])
    assert float(rmsd(x.reshape(-1, ATOMS, 3), TEMPLATE).max()) < 0.2


def test_seeds_repeat_and_torchs_own_stream_is_used_without_them():
    module, plan = Boltz2(), structure_plan("protenix-mini", 1)

    def drawn(seeds):
        with sampling_by(plan, module, seeds):
            return module.sample(torch.ones(1, ATOMS), multiplicity=2, s_trunk=torch.ones(1))["sample_atom_coords"]

    assert torch.equal(drawn([1, 2]), drawn([1, 2]))
    torch.manual_seed(3)
    first = drawn(None)
    torch.manual_seed(3)
    assert torch.equal(drawn(None), first)
    assert not torch.equal(drawn(None), first)
    with pytest.raises(FewstepError, match="as many seeds"):
        drawn([1])
    with pytest.raises(FewstepError, match="no sampler known"), sampling_by(plan, object()):
        pass
