"""The page of MF-RAE, from results/latents.json."""

from __future__ import annotations

from typing import Any

from formats import made_by, shown, table
from svg import NAMES, difference

RESULTS, PAGE = ("latents.json",), "mf-rae.md"


def page(results: dict[str, Any]) -> str:
    """docs/systems/mf-rae.md, whole; every number and every verdict comes from the results."""
    s = results["settings"]
    return f"""# MeanFlow in a representation autoencoder's latents (MF-RAE, arXiv 2511.13019)

Written by `docs/make_pages.py` from `results/latents.json`. Latents: `src/fewstep/latents`; the method:
`src/fewstep/distillation/presets/cmt.py`.

A flow in the latents of a representation autoencoder becomes a student of one or two steps: mid-training on the
trajectories of the teacher with their true times (CMT), then MeanFlow with the velocity of the teacher by central
differences (MFD), then shortly with that of the data (MFT). No guidance.

    fewstep train encoder --set data=mnist.npz --set size=32
    fewstep train rae --set data=mnist.npz --set size=32
    fewstep train dit --set data=mnist.npz --set vae=runs/train-rae --set objective=flow
    fewstep distill mf_rae --model runs/train-dit --steps 1        # or mean_flow, without the stages

The shift of the times by the number of numbers of a latent belongs to the flow (`shift` of stage `dit`), is stored with
its scheduler, and the student follows it: leave the `shift` of `mf_rae` at 1 then.

## Digits: RAE against VAE, stages against MeanFlow alone

Teachers, latents and judge as on the page of SVG: {s["updates"]["flow"]} updates of a small transformer in each latent.
Students begin as their teacher and take {s["updates"]["mean-flow"]} updates of {s["student"]["batch"]} at learning rate
{s["student"]["learning_rate"]:g}, {len(s["seeds"])} seeds. `mean_flow` sees the real digits; `mf_rae` sees
{s["trajectories"]} trajectories of {s["teacher_steps"]} teacher steps, and their ends as data. Its updates cost other
amounts than those of `mean_flow`, which has a forward derivative in each.

{_students(results)}

"Largest gradient": the largest mean norm over 20 updates, before clipping, of all seeds; the two methods weight their
losses differently (the floor of the adaptive weight is 1e-2 and 1e-3), so that norms tell of spikes within a method
alone. Fréchet distances, paired by seed, 95 % interval of the difference; less is better:

{_verdicts(results)}

## What was and was not reproduced

- Exact (`tests/distillation`): the stages' targets and their fixed point, times of stored states, differences against
  forward derivatives, randomness shared by the three evaluations of a difference.
- Reproduced at small scale: the table above.
- Changed: stored states carry their true times; the released code labels the states of a shifted grid as evenly spaced,
  and drops labels anew in each evaluation of a difference.
- The autoencoder of the baseline is the shipped one, trained for longer than the RAE decoder; rates and widths were
  chosen by runs with other seeds, not per latent. Both favour the baseline.
- Not reproduced: ImageNet, the wide head of the transformer (DiT-DH), the decoder of a vision transformer, statistics
  per position (here per channel).

{made_by(results)}
"""


def _students(results: dict[str, Any]) -> str:
    rows = []
    for name, by_steps in results["students"].items():
        preset, latent = name.split(", ")
        cost = results["student_cost"][name]
        spike = max(row["largest_gradient"] for row in cost)
        for steps, m in by_steps.items():
            cells = [shown(m["frechet"], 2), shown(m["right"], 3), f"{spike:.2f}"]
            rows.append([f"`{preset}`", NAMES[latent], steps, *cells])
    for latent in ("vae", "rae"):
        for steps, m in results["flows"]["flow"][latent].items():
            rows.append(["teacher", NAMES[latent], steps, shown(m["frechet"], 2), shown(m["right"], 3), ""])
    return table(["student", "latent", "steps", "Fréchet", "recognised", "largest gradient"], rows)


def _verdicts(results: dict[str, Any]) -> str:
    rows = []
    for preset, by_steps in results["rae_versus_vae"].items():
        rows += [[f"`{preset}`: RAE - VAE", steps, *difference(d)] for steps, d in by_steps.items()]
    for latent, by_steps in results["stages_versus_alone"].items():
        rows += [[f"{NAMES[latent]}: `mf_rae` - `mean_flow`", n, *difference(d)] for n, d in by_steps.items()]
    return table(["difference", "steps", "Fréchet", "verdict"], rows)
