"""`fewstep quantize`: a pipeline in low bits, every layer accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.run import DryRun, Fresh, Out, execute
from fewstep.cli.shell import Guidance, Overrides, examples, finite, names


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog=examples(
            "fewstep quantize emoji-student --scheme w4a8",
            "fewstep quantize my-pipeline --effective-bits 4.5 --out runs/four-and-a-half",
            "fewstep quantize my-pipeline --scheme w4a8 --method svdquant --per-step --corrections ptqd,stepbaq",
            "fewstep quantize my-pipeline --budget 2.5GB --parts backbone,text,vae --q-sched 60",
        )
    )(quantize)


def quantize(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or a shipped model.")],
    scheme: Annotated[str, typer.Option(help="One scheme for all layers, such as w8a8, w4a8, w4a16-asym.")] = "",
    budget: Annotated[str, typer.Option(help="Bytes of the backbone's file, such as 2.5GB: bits are chosen.")] = "",
    effective_bits: Annotated[
        float, typer.Option(min=0, callback=finite, help="The same as stored bits per weight, scales included.")
    ] = 0,
    method: Annotated[
        str, typer.Option(help="rtn (seconds), clip, gptq, adaround, brecq, smoothquant, svdquant.")
    ] = "rtn",
    parts: Annotated[str, typer.Option(help="What to quantize: backbone, text, vae, with commas.")] = "backbone",
    steps: Annotated[int, typer.Option(min=1, help="Steps at which the pipeline will run.")] = 4,
    guidance: Guidance = 1.0,
    q_sched: Annotated[
        float, typer.Option(min=0, callback=finite, help="Budget of a Q-Sched search on the result.")
    ] = 0,
    corrections: Annotated[str, typer.Option(help="Corrections of the plan to try: ptqd, stepbaq, with commas.")] = "",
    per_step: Annotated[
        bool, typer.Option("--per-step", help="With --scheme: bits per step, same mean compute.")
    ] = False,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Quantize MODEL after training: obey a scheme, or choose bits layer by layer under a budget (MixDQ).

    Prints what every block got; every layer with its bits, kernel, sensitivity and the reason stands in report.html and
    artifacts/layers.csv. Measures size, memory, time and pictures before and after in one process, and says so when the
    result is slower. Leaves artifacts/pipeline, a diffusers folder that loads again in one line. MODEL itself is never
    changed.
    """
    if not scheme and not budget and not effective_bits:
        scheme = "w4a8"
    chosen = {
        "model": model, "scheme": scheme, "budget": budget, "effective_bits": effective_bits,
        "method": method, "parts": names(parts), "steps": steps, "guidance": guidance, "q_sched": q_sched,
        "corrections": names(corrections), "per_step": per_step,
    }  # fmt: skip
    aim = scheme or budget or f"{effective_bits:g}bits"
    place = out or Path("runs") / f"quantize-{Path(model).name}-{aim}"
    execute("quantize", overrides or [], place, fresh, dry_run, chosen)
