"""Protein structures in few steps: samplers as plans, a small predictor, files, judges, and a bridge to large ones."""

from fewstep.lazy import attributes

_PLACES = {
    "Conditioning": "network",
    "Folding": "folding",
    "FragmentBelief": "library",
    "NetworkSize": "network",
    "SAMPLERS": "sampling",
    "StructureNetwork": "network",
    "StructureSampler": "sampling",
    "alignment_profile": "conditions",
    "bond_error": "scores",
    "boltz_sample": "bridge",
    "bound": "sampling",
    "centred": "geometry",
    "clashes": "scores",
    "diffusion_loss": "losses",
    "diversity": "scores",
    "fold": "folding",
    "fragment_belief": "library",
    "ideal_helix": "scores",
    "lddt": "scores",
    "load_structure_network": "folding",
    "moved": "sampling",
    "populations": "scores",
    "protenix_sample": "bridge",
    "read_fasta": "files",
    "read_structure": "files",
    "restraints_between": "conditions",
    "rmsd": "scores",
    "sampling_by": "bridge",
    "smooth_lddt_loss": "losses",
    "structure_denoiser": "sampling",
    "structure_plan": "sampling",
    "superposed": "geometry",
    "traces_svg": "viewer",
    "write_pdb": "files",
}
__all__ = list(_PLACES)
__getattr__ = attributes("fewstep.tasks.proteins", _PLACES)
