"""`fewstep fold`: protein structures in few steps, beside many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.shell import LOOK, Overwrite, console, end_with, examples
from fewstep.errors import FewstepError


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "fold",
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep fold GSHMKDELKKAIEEAKKLGN",
            "fewstep fold chain.pdb --chain A --restrain 0.1 --steps 5 --samples 8",
            "fewstep fold some.fasta --sampler boltz-2 --steps 20 --out folded",
        ),
    )(run)


def run(
    source: Annotated[str, typer.Argument(help="A sequence, a FASTA file, or a PDB or mmCIF file.")],
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler's schedule.")] = 2,
    sampler: Annotated[
        str, typer.Option(help="Of protenix-mini (an ODE), protenix, af3, boltz-1, boltz-2 and chai-1.")
    ] = "protenix-mini",
    plan: Annotated[Path | None, typer.Option(help="A plan file, instead of steps and sampler.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Structures; the most confident comes first.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the first structure.")] = 0,
    beside: Annotated[int, typer.Option(min=0, help="Steps of Protenix' own sampler to compare with; 0: none.")] = 200,
    chain: Annotated[str, typer.Option(help="Of a file of structures; the first unless given.")] = "",
    restrain: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the distances of a given structure that are told.")
    ] = 0.0,
    recycles: Annotated[int, typer.Option(min=1, max=20, help="Passes through the trunk.")] = 2,
    model: Annotated[
        str, typer.Option(help="Folder of a structure network; fragments of known chains unless given.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of the structures and reports.")] = Path("folded"),
    overwrite: Overwrite = False,
) -> None:
    """Fold a sequence by fragments of known chains: OUT/NAME.pdb, and OUT/NAME.html, which shows few steps beside many.

    It shows what samplers do; no structure of it is one that anyone should use.

    A file with several sequences goes on where one fails, lists what failed and ends with status 1.
    """
    from fewstep.files import check_free
    from fewstep.jobs import folding
    from fewstep.plan import Plan
    from fewstep.tasks.proteins import fold, load_structure_network, structure_plan, write_pdb

    plans = {f"{sampler}, {steps} steps": structure_plan(sampler, steps)}
    if plan is not None:
        plans = {plan.stem: Plan.load(plan)}
    if beside:
        plans.setdefault(f"protenix, {beside} steps", structure_plan("protenix", beside))
    network, failed = load_structure_network(model) if model else None, dict[str, str]()
    asked = folding.queries(source, chain)
    for query in asked:
        places = [out / f"{query.name}{ending}" for ending in (".pdb", ".html")]
        try:
            for place in places:
                check_free(place, overwrite)
            told = folding.restraints_of(query, restrain, seed)
            seeds = folding.seeds_from(seed, samples)
            done = {
                caption: fold(query.sequence, used, network=network, seeds=seeds, recycles=recycles, restraints=told)
                for caption, used in plans.items()
            }
            first = next(iter(done.values()))
            write_pdb(places[0], first.structures, first.confidence, "ours" if overwrite else "nothing")
            folding.report(query, done, places[1])
        except FewstepError as error:
            if len(asked) == 1:
                raise
            failed[query.name] = str(error)
            continue
        for note in query.notes:
            console().print(f"[yellow]{query.name}[/yellow]: {note}", highlight=False)
        for caption, each in done.items():
            console().print(f"{caption}: {each!r}", highlight=False)
        console().print(f"[bold green]Wrote[/bold green] {places[0]} and {places[1]}")
    end_with(failed)
