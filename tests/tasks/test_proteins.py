"""The small structure predictor: its judges and losses, its cache, its conditions, its data and files."""

import copy
import dataclasses
import math

import pytest
import torch

from fewstep.data.proteins import LETTERS, Structure, fragments, letters_of, load_backbones
from fewstep.errors import FewstepError
from fewstep.tasks.proteins import (
    NetworkSize,
    StructureNetwork,
    alignment_profile,
    bond_error,
    clashes,
    diffusion_loss,
    diversity,
    fold,
    fragment_belief,
    ideal_helix,
    lddt,
    read_fasta,
    read_structure,
    restraints_between,
    rmsd,
    smooth_lddt_loss,
    structure_denoiser,
    structure_plan,
    traces_svg,
    write_pdb,
)
from fewstep.tasks.proteins.files import clean_sequence
from fewstep.tasks.proteins.geometry import centred, rotations, superposed
from fewstep.tasks.proteins.losses import aligned_error
from fewstep.tasks.proteins.pruning import block_changes, least_harmful, without_blocks
from fewstep.tasks.proteins.training import StructureTraining, structure_stage
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig

SIZE = NetworkSize(single=16, pair=8, trunk_blocks=1, width=16, heads=2, blocks=2)


def random_chain(length, seed=0):
    """A chain with bonds of 3.8 angstrom."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(length, 3, generator=generator) + torch.tensor([1.0, 0, 0])
    steps = torch.nn.functional.normalize(drawn, dim=1)
    letters = torch.randint(20, (length,), generator=generator).tolist()
    return Structure("".join(LETTERS[k] for k in letters), (3.8 * steps).cumsum(0), f"random-{seed}")


# --- judges and losses -------------------------------------------------------------------------------------------


def test_lddt_is_its_definition_and_the_smooth_one_follows_it():
    truth = random_chain(12).coordinates.double()
    x = truth + torch.randn(3, 12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for k in range(3):
        kept, near, smooth = 0.0, 0, 0.0
        for i in range(12):
            for j in range(12):
                true = math.dist(truth[i].tolist(), truth[j].tolist())
                if i != j and true < 15:
                    off = abs(math.dist(x[k, i].tolist(), x[k, j].tolist()) - true)
                    kept += sum(off < t for t in (0.5, 1, 2, 4)) / 4
                    smooth += sum(1 / (1 + math.exp(off - t)) for t in (0.5, 1, 2, 4)) / 4
                    near += 1
        assert float(lddt(x, truth)[k]) == pytest.approx(kept / near)
        assert float(smooth_lddt_loss(x, truth.expand_as(x))[k]) == pytest.approx(1 - smooth / near)
    assert float(lddt(truth.unsqueeze(0), truth)) == 1


def test_losses_do_not_see_rigid_motions_but_do_see_mirrors():
    truth = torch.stack([random_chain(10, seed).coordinates for seed in range(2)]).double()
    x = truth + torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turn = rotations(torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    there = truth @ turn + 7.0
    sigma = torch.tensor([2.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(diffusion_loss(x, there, sigma), diffusion_loss(x, truth, sigma))
    torch.testing.assert_close(aligned_error(x, there) * 3, rmsd(x, truth) ** 2)
    mirrored = truth * torch.tensor([1.0, 1.0, -1.0])
    assert float(aligned_error(mirrored, truth).min()) > 0.5
    extra = diffusion_loss(x, truth, sigma) - smooth_lddt_loss(x, truth)
    torch.testing.assert_close(extra, (sigma**2 + 256) / (16 * sigma) ** 2 * aligned_error(x, truth))


def test_geometry_of_an_ideal_helix():
    helix = ideal_helix(20).unsqueeze(0)
    assert float(bond_error(helix)) < 0.05
    assert float(clashes(helix)) == 0
    steps = helix[0, 4:] - helix[0, :-4]
    assert steps.norm(dim=1).tolist() == pytest.approx([6.2] * 16, abs=0.2)  # i to i + 4 of an alpha helix
    a, b, c = helix[0].diff(dim=0)[:3]
    assert float(torch.linalg.cross(a, b) @ c) > 0  # right-handed
    pair = torch.cat([helix, helix * torch.tensor([1.0, 1.0, -1.0])])
    assert float(diversity(pair)) == pytest.approx(float(rmsd(pair[:1], pair[1])))
    assert float(diversity(helix)) == 0
    assert float(clashes(0.5 * helix)) > 1


# --- network -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = StructureNetwork(SIZE).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # what begins at zero would hide mistakes
            parameter += 0.1 * torch.randn(parameter.shape)
    return made


def test_reading_once_is_reading_at_every_call_and_one_by_one(network):
    letters = letters_of(random_chain(9).sequence).unsqueeze(0)
    x = 10 * torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0))
    denoiser = structure_denoiser(network)
    with torch.no_grad():
        once = network.read(letters, recycles=2)
        for sigma in (1.0, 40.0):
            kept = denoiser(x, sigma, {"read": once})
            anew = denoiser(x, sigma, {"read": network.read(letters, recycles=2)})
            assert torch.equal(kept, anew)
            torch.testing.assert_close(denoiser(x, sigma, {"read": once.repeated(4)}), kept)
            single = torch.cat([denoiser(each.unsqueeze(0), sigma, {"read": once}) for each in x])
            torch.testing.assert_close(single, kept, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(network.read(letters, recycles=1).bias, once.bias)


def test_a_clean_structure_is_left_alone_without_noise(network):
    x = random_chain(9).coordinates.unsqueeze(0)
    read = network.read(letters_of("A" * 9).unsqueeze(0))
    found = structure_denoiser(network)(x, 1e-5, {"read": read})
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-2)


def test_conditions_say_nothing_before_they_are_learned_and_can_be_left_out():
    torch.manual_seed(0)
    fresh = StructureNetwork(SIZE)
    chain = random_chain(9)
    letters = letters_of(chain.sequence).unsqueeze(0)
    told = {
        "embedding": torch.rand(1, 9, 21),
        "restraints": restraints_between(chain.coordinates, 0.5, torch.Generator().manual_seed(0)).unsqueeze(0),
    }
    plain = fresh.read(letters)
    for name, value in told.items():
        assert torch.equal(fresh.read(letters, **{name: value}).bias, plain.bias)
    for layer in (fresh.trunk.embedding, fresh.trunk.restraints):
        torch.nn.init.normal_(layer.weight)
    for name, value in told.items():
        assert not torch.allclose(fresh.read(letters, **{name: value}).bias, plain.bias)
        assert torch.equal(fresh.read(letters, **{name: torch.zeros_like(value)}).bias, plain.bias)


def test_restraints_tell_some_true_distances():
    x = random_chain(30).coordinates
    told = restraints_between(x, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(told, told.T)
    pairs = told.nonzero()
    assert 20 < len(pairs) < 0.4 * 30 * 30
    assert int((pairs[:, 0] - pairs[:, 1]).abs().min()) >= 3
    true = torch.cdist(x, x)
    assert float((told - true)[told > 0].abs().mean()) == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.3)
    assert float(restraints_between(x, 0.0, torch.Generator()).abs().max()) == 0


def test_the_profile_of_an_alignment():
    rows = ["AC-DE", "ACGDE", "GCGDE", "GC--E"]
    profile = alignment_profile(rows, pseudocount=0.0)
    assert profile.shape == (4, 21)  # residues of the first row
    torch.testing.assert_close(profile[:, :20].sum(1), torch.ones(4))
    assert float(profile[1, LETTERS.index("C")]) == 1
    assert 0 < float(profile[0, LETTERS.index("G")]) < 1
    assert float(profile[2, 20]) < float(profile[3, 20]) == 1
    with pytest.raises(FewstepError, match="one length"):
        alignment_profile(["AC", "A"])


def test_training_goes_down_and_goes_on_where_it_stopped(tmp_path):
    chains = [random_chain(20, seed) for seed in range(3)]
    how = StructureTraining(lengths=(8, 10), structures=2, copies=2)
    config = StageConfig(steps=4, batch=2, learning_rate=3e-3, warmup=1, ema=0.5, device="cpu")

    def run(folder, until=None):
        torch.manual_seed(0)
        made = StructureNetwork(SIZE)
        stage = structure_stage(made, chains, how, {chains[0].name: torch.rand(20, 21)})
        return fit(stage, config, folder, accelerator_for(config), quiet=True, until=until), made

    whole, network = run(tmp_path / "whole")
    run(tmp_path / "parts", until=2)
    _, resumed = run(tmp_path / "parts")
    assert all(math.isfinite(value) for value in whole.history[-1].values())
    for name, value in network.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_block_that_does_nothing_is_found_and_can_go(network):
    made = copy.deepcopy(network)
    with torch.no_grad():
        made.forces.weight.zero_()
        for layer in (made.blocks[1].out, made.blocks[1].transition[-1], made.blocks[1].pull):
            layer.weight.zero_()
            layer.bias.zero_()
    letters = letters_of("ACDEFGHIK").unsqueeze(0)
    x = 10 * torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))

    def denoised(some):
        with torch.no_grad():
            return structure_denoiser(some)(x, 5.0, {"read": some.read(letters)})

    changes = block_changes(made, lambda: denoised(made))
    assert changes[1] == pytest.approx(0, abs=1e-6)
    assert changes[0] > 1e-3
    whole = denoised(made)
    torch.testing.assert_close(denoised(without_blocks(made, [1])), whole)
    assert least_harmful(made, lambda some: float((denoised(some) - whole).square().mean()), 1) == [1]
    with pytest.raises(FewstepError, match="one must stay"):
        without_blocks(made, [0, 1])


# --- folding -----------------------------------------------------------------------------------------------------


def test_folding_ranks_by_confidence_and_a_seed_is_a_structure(network):
    folded = fold("acdefghikl", structure_plan("protenix-mini", 2), network=network, seeds=[3, 4, 5])
    assert folded.confidence.tolist() == sorted(folded.confidence.tolist(), reverse=True)
    assert {structure.name for structure in folded.structures} == {"fold-3", "fold-4", "fold-5"}
    alone = fold("ACDEFGHIKL", structure_plan("protenix-mini", 2), network=network, seeds=[4])
    same = next(s for s in folded.structures if s.name == "fold-4")
    assert float(rmsd(alone.coordinates, same.coordinates)) < 1e-2
    assert set(folded.seconds) == {"trunk", "sampler", "confidence"}
    with pytest.raises(FewstepError, match="restraints"):
        fold("ACDEFGHIKL", network=network, restraints=torch.zeros(3, 3))
    with pytest.raises(FewstepError, match="once at least"):
        fold("ACDEFGHIKL", network=network, recycles=0)


def test_fragments_fold_a_known_chain_to_itself_and_others_towards_what_fits():
    chains = load_backbones("train")
    part = chains[0].part(4, 24)
    folded = fold(part.sequence, structure_plan("protenix-mini", 5), seeds=[0, 1])
    assert float(rmsd(folded.coordinates, part.coordinates).max()) < 1.2  # thermal motion of 0.5 an axis
    other = load_backbones("test")[0].part(4, 24)
    told = restraints_between(other.coordinates, 0.4, torch.Generator().manual_seed(0))
    near = fold(other.sequence, structure_plan("protenix-mini", 5), seeds=[0, 1], restraints=told)
    far = fold(other.sequence, structure_plan("protenix-mini", 5), seeds=[0, 1])
    assert float(lddt(near.coordinates, other.coordinates).mean()) > float(
        lddt(far.coordinates, other.coordinates).mean()
    )
    with pytest.raises(FewstepError, match="no unbroken fragments"):
        fold("A" * 700, most=800)
    with pytest.raises(FewstepError, match="no embedding"):
        fold(part.sequence, embedding=torch.zeros(24, 21))


def test_a_belief_is_the_posterior_of_its_members():
    chains = [random_chain(8, seed) for seed in range(2)]
    belief = fragment_belief([chains[0].sequence], chains, stride=8)
    assert belief.traces.shape == (1, 2, 8, 3)
    equal = [sum(a == b for a, b in zip(chain.sequence, chains[0].sequence, strict=True)) for chain in chains]
    assert sorted(belief.weights[0].tolist()) == sorted(map(float, equal))
    x = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    sigma, thermal = 3.0, 0.5
    members = [superposed(trace.double().expand_as(x), centred(x)) for trace in belief.traces[0]]
    spread = sigma**2 + thermal**2
    logs = [
        w - ((centred(x) - m) ** 2).sum((1, 2)) / (2 * spread) for w, m in zip(belief.weights[0], members, strict=True)
    ]
    share = torch.stack(logs).softmax(0)[..., None, None]
    means = torch.stack([m + thermal**2 / spread * (centred(x) - m) for m in members])
    torch.testing.assert_close(belief(x, torch.tensor(sigma)), (share * means).sum(0))
    left_out = fragment_belief([chains[0].sequence], chains, without=[chains[0].name], stride=8)
    assert left_out.weights[0].isinf().sum() == 1


@pytest.mark.parametrize(
    ("sequence", "said"),
    [("ACDJF", "residue 4 is no amino acid.*Write X"), ("AC-DF", "gaps"), ("AC", "four"), ("", "four"),
     ("A" * 600, "at most 512.*in parts"), ("ACD1F", "residue 4")],
)  # fmt: skip
def test_sequences_that_cannot_be_folded_say_why(sequence, said):
    with pytest.raises(FewstepError, match=said):
        clean_sequence(sequence, 512)


def test_sequences_are_read_as_people_write_them(tmp_path):
    assert clean_sequence(" acd ef\nXX*", 512) == "ACDEFXX"
    file = tmp_path / "some.fasta"
    file.write_text(">one first\nACDE\nFGHI\n>two\nMKV\n")
    assert read_fasta(file) == [("one", "ACDEFGHI"), ("two", "MKV")]
    file.write_text("\n")
    with pytest.raises(FewstepError, match="no sequence"):
        read_fasta(file)


# --- files -------------------------------------------------------------------------------------------------------


def atom(number, residue, x, *, name="CA", alt=" ", chain="A", share=1.0, kind="ATOM", element="C", insertion=" "):
    return (
        f"{kind:<6}{number:>5}  {name:<3}{alt}{residue:>3} {chain}{number:>4}{insertion}   "
        f"{x:8.3f}{0.0:8.3f}{0.0:8.3f}{share:6.2f}{20.0:6.2f}          {element:>2}"
    )


def test_a_written_structure_is_read_back(tmp_path):
    chain = random_chain(12)
    file = tmp_path / "out.pdb"
    write_pdb(file, [chain, chain], torch.tensor([0.9, 0.5]))
    back, notes = read_structure(file, model=2)
    assert back.sequence == chain.sequence
    torch.testing.assert_close(back.coordinates, chain.coordinates, atol=6e-4, rtol=0)
    assert notes == ["2 models: the one of number 2 was read."]
    assert "90.00" in file.read_text()
    with pytest.raises(FewstepError):
        write_pdb(file, [chain])  # nothing is overwritten
    with pytest.raises(FewstepError, match="does not fit"):
        write_pdb(tmp_path / "far.pdb", [dataclasses.replace(chain, coordinates=chain.coordinates + 2000)])


def test_what_is_odd_in_a_pdb_file_is_said(tmp_path):
    lines = [
        atom(1, "ALA", 0.0),
        atom(2, "GLY", 3.8, alt="A", share=0.3), atom(2, "GLY", 4.0, alt="B", share=0.7),
        atom(3, "SER", 7.5, name="N", element="N"),  # no C-alpha
        atom(4, "MSE", 11.0, kind="HETATM"),
        atom(5, "ABC", 14.8),
        atom(9, "LEU", 30.0),
        "TER", atom(90, "CA ", 5.0, kind="HETATM", element="CA"), atom(91, "HOH", 5.0, kind="HETATM", name="O"),
        atom(1, "TRP", 0.0, chain="B"), "END",
    ]  # fmt: skip
    file = tmp_path / "odd.pdb"
    file.write_text("\n".join(lines))
    structure, notes = read_structure(file)
    assert structure.sequence == "AGMXL"
    assert structure.coordinates[:, 0].tolist() == pytest.approx([0, 4.0, 11.0, 14.8, 30.0])
    assert structure.numbers == (1, 2, 4, 5, 9)
    said = " ".join(notes)
    for part in ("chains A, B", "SER 3", "GLY 2", "MSE 4, ABC 5", "2 and 4", "5 and 9"):
        assert part in said
    assert read_structure(file, chain="B")[0].sequence == "W"
    assert not structure.unbroken(0, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no protein chain"), (atom(1, "HOH", 0.0, name="O"), "no protein chain"),
     (atom(1, "ALA", 0.0)[:40], "ends before"), (atom(1, "ALA", 0.0).replace("0.000", "x.000"), "no coordinates"),
     (atom(1, " DA", 0.0, name="P"), "no protein chain")],
)  # fmt: skip
def test_files_without_a_protein_say_so(text, said, tmp_path):
    file = tmp_path / "bad.pdb"
    file.write_text(text)
    with pytest.raises(FewstepError, match=said):
        read_structure(file)


def test_chains_and_models_that_are_not_there(tmp_path):
    file = tmp_path / "one.pdb"
    write_pdb(file, [random_chain(5)])
    with pytest.raises(FewstepError, match="no such protein chain.*It has A"):
        read_structure(file, chain="Z")
    with pytest.raises(FewstepError, match="1 model"):
        read_structure(file, model=2)
    with pytest.raises(FewstepError, match="cannot read"):
        read_structure(tmp_path / "none.pdb")


def test_mmcif_needs_gemmi_or_is_read(tmp_path):
    file = tmp_path / "one.cif"
    file.write_text("data_x\n")
    with pytest.raises(FewstepError, match="gemmi|no protein"):
        read_structure(file)


# --- data and drawings -------------------------------------------------------------------------------------------


def test_shipped_backbones_are_chains_and_their_splits_are_apart():
    train, test = load_backbones("train"), load_backbones("test")
    assert len(train) + len(test) == 97
    assert not {chain.sequence for chain in train} & {chain.sequence for chain in test}
    for chain in [*train[:3], train[0].part(0, 5)]:
        steps = chain.coordinates.diff(dim=0).norm(dim=1).tolist()
        found = [k for k in range(len(chain) - 31) if all(2.6 < step < 4.4 for step in steps[k : k + 31])]
        assert chain.unbroken_starts(32) == found
    parts = fragments(test, 32)
    assert len(parts) > 30
    assert all(len(part) == 32 and float(bond_error(part.coordinates)) < 0.4 for part in parts)
    with pytest.raises(FewstepError, match="split"):
        load_backbones("validation")


def test_a_drawing_turns_without_scripts():
    chain = random_chain(12)
    drawing = traces_svg([chain.coordinates, chain.coordinates + 1.0], ["a < b", "other"])
    assert drawing.startswith("<svg")
    assert drawing.count("<polyline") == 2
    assert "a &lt; b" in drawing
    assert "<script" not in drawing
    assert "http" not in drawing.replace("http://www.w3.org/2000/svg", "")
    assert "<animate" not in traces_svg([chain.coordinates], seconds=0)
