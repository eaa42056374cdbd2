"""The report of a Q-Sched run: one sentence, then everything a sceptic would ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.jobs.q_sched.measure import load_images
from fewstep.jobs.q_sched.names import FULL, FULL_TUNED, LOW, LOW_TUNED, TEACHER, systems_of
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.q_sched.sentence import sentence
from fewstep.plan import Plan
from fewstep.report import (
    Block,
    Code,
    Column,
    FactList,
    Figure,
    Highlights,
    ImageGrid,
    Note,
    Page,
    Table,
    TableRow,
    figures,
    plan_table,
    save_page,
)
from fewstep.report.images import image_grid, save_image
from fewstep.runs import Run
from fewstep.schedules.tuning import SearchOutcome

SHOWN = 8
"""Prompts in the image grid."""
PAIRED = ("mmd", "frechet", "recall", "judge", "diversity")
"""Kinds of metrics whose paired differences are shown."""

Results = Mapping[str, Any]


def write_report(
    run: Run,
    recipe: QSchedRecipe,
    results: Results,
    outcomes: Mapping[str, SearchOutcome],
    plans: Mapping[str, Plan],
    quantization: Results,
    landscape: Results,
) -> Path:
    """Write `report.html` into the run directory and return its path."""
    measured = results.get("evaluation")
    blocks: list[Block] = [
        _highlights(results, quantization),
        *([_metrics(measured), _differences(measured)] if measured else []),
        *_warnings(outcomes, results),
        *([_pictures(run, recipe, measured)] if measured else []),
        *([_landscape(landscape, outcomes[LOW], plans[LOW_TUNED], recipe)] if landscape else []),
        _coefficients(plans),
        plan_table(plans[LOW_TUNED], "The tuned plan", "The scalars s and m are already inside the coefficients."),
        _search_table(outcomes, recipe),
        _bytes(quantization),
        _layers(quantization),
        FactList("Environment", {k: str(v) for k, v in results["environment"].items()}),
        Code("Command", results["environment"]["command"]),
    ]
    page = Page(f"{recipe.model}, {recipe.steps} steps, {recipe.scheme}", sentence(results), blocks, label="Q-Sched")
    return save_page(page, run.path / "report.html")


def _highlights(results: Results, quantization: Results) -> Block:
    return Highlights(
        title="At a glance",
        items=[
            _shrunk(quantization, "disk", "backbone on disk"),
            _shrunk(quantization, "resident", "in memory"),
            (f"{quantization['bits_per_weight']:.2f}", "bits per quantized weight", "scales included"),
            *_times(results),
        ],
    )


def _times(results: Results) -> list[tuple[str, str, str]]:
    if "speed" not in results:
        return []
    low, full = (results["speed"][name]["milliseconds"] for name in (LOW, FULL))
    return [(f"{low:.0f} ms", "per image", f"full precision {full:.0f} ms on this machine")]


def _shrunk(quantization: Results, where: str, label: str) -> tuple[str, str, str]:
    before, after = quantization[f"{where}_before"], quantization[f"{where}_after"]
    return (_size(after), label, f"from {_size(before)}")


def _metrics(evaluation: Results) -> Block:
    described = evaluation["metrics"]
    columns = [Column(d["label"], better=d["better"], digits=_digits(name)) for name, d in described.items()]
    names = systems_of(evaluation)
    rows = [TableRow(name, [evaluation["systems"][name].get(m) for m in described]) for name in names]
    if TEACHER in evaluation["systems"]:
        teacher = evaluation["systems"][TEACHER]
        rows.append(TableRow("teacher, many steps", [teacher.get(m) for m in described], "one seed", reference=True))
    null = evaluation["null"]
    rows.append(
        TableRow("real against real", [null.get(m) for m in described], "the floor of each distance", reference=True)
    )
    text = (
        f"{evaluation['prompts']} held-out prompts, {evaluation['seeds']} seeds, the same for every system"
        f"{_left_out(evaluation)}. "
        f"Reference: {evaluation['reference_set']} ({evaluation['reference']} images). Small print: 95 % bootstrap "
        "intervals over prompts (range over splits for the last row). The judge was never searched on."
    )
    return Table("What each step cost and won", columns, rows, text=text, corner="system")


def _left_out(evaluation: Results) -> str:
    count = evaluation["left_out"]
    return f" ({count} prompts that the search uses were left out)" if count else ""


def _differences(evaluation: Results) -> Block:
    described = {m: d for m, d in evaluation["metrics"].items() if d["kind"] in PAIRED}
    columns = [Column(d["label"], digits=_digits(name)) for name, d in described.items()]
    rows = [TableRow(pair, [table.get(m) for m in described]) for pair, table in evaluation["comparisons"].items()]
    text = "Same prompts, seeds and resamples on both sides; an interval that contains 0 shows no difference."
    return Table("Paired differences", columns, rows, text=text, corner="difference")


def _warnings(outcomes: Mapping[str, SearchOutcome], results: Results) -> list[Block]:
    notes: list[Block] = []
    edge = [name for name, outcome in outcomes.items() if outcome.on_boundary]
    if edge:
        text = (
            f"The optimum of {', '.join(edge)} lies on the edge of the search box: the box, not the objective, chose "
            "it. Widen search.low and search.high, or read the gain as a lower bound."
        )
        notes.append(Note(text, title="Boundary", tone="warning"))
    low, full = (results.get("speed", {}).get(name, {}).get("milliseconds", 0.0) for name in (LOW, FULL))
    if low > 1.05 * full:
        text = (
            f"The quantized network takes {low / full:.2f} times as long per image here: this device has no kernel "
            "for it, so weights are unpacked at every call. It saves memory; for speed use a device that "
            "`fewstep doctor` reports int8 kernels for, or keep full precision."
        )
        notes.append(Note(text, title="Slower on this device", tone="warning"))
    return notes


def _pictures(run: Run, recipe: QSchedRecipe, evaluation: Results) -> Block:
    seed, prompts = recipe.evaluation.seeds[0], evaluation["prompts_used"]
    picks = [i * len(prompts) // SHOWN for i in range(min(SHOWN, len(prompts)))]
    names = systems_of(evaluation)
    stacks = [load_images(run, name, seed) for name in names]
    if TEACHER in evaluation["systems"]:
        stacks.append(load_images(run, f"{TEACHER}-{recipe.evaluation.teacher_steps}", seed))
        names.append(f"teacher, {recipe.evaluation.teacher_steps} steps")
    images = [[stack[i].float() / 255 for stack in stacks] for i in picks]
    rows = torch.stack([images[i][j] for j in range(len(names)) for i in range(len(picks))])
    save_image(image_grid(rows, columns=len(picks), zoom=2), run.path / "grid.png", over="all")
    return ImageGrid(
        "Equal prompts, equal seeds",
        images,
        [prompts[i] for i in picks],
        names,
        text="Not chosen by eye: evenly spread over the held-out prompts, first evaluation seed.",
    )


def _landscape(landscape: Results, outcome: SearchOutcome, tuned: Plan, recipe: QSchedRecipe) -> Block:
    first = tuned.rows[0]
    box = (recipe.search.low, recipe.search.high)
    optimum = (_number(first.output_scale), _number(first.sample_scale))
    gain = "objective minus that of the identity"
    drawn = figures.landscape(
        landscape["outputs"], landscape["states"], landscape["values"], optimum=optimum, box=(box, box), label=gain
    )
    text = (
        "Objective gained over the two scalars of the first step, running to 1 at the last, quantized pipeline; a "
        f"quarter of the calibration items. The star: where the search over the family '{recipe.search.family}' ended."
    )
    return Figure("The landscape", drawn, text=text)


def _coefficients(plans: Mapping[str, Plan]) -> Block:
    series = {}
    for name in (n for n in (LOW_TUNED, FULL_TUNED) if n in plans):
        series[f"s, {name}"] = [_number(row.sample_scale) for row in plans[name].rows]
        series[f"m, {name}"] = [_number(row.output_scale) for row in plans[name].rows]
    text = (
        "Where the quantized and the full-precision optimum agree, Q-Sched repairs the sampler, not the quantization."
    )
    return Figure("The coefficients", figures.coefficients(series), text=text)


def _search_table(outcomes: Mapping[str, SearchOutcome], recipe: QSchedRecipe) -> Block:
    columns = [
        Column("objective untuned"),
        Column("objective tuned", better="higher"),
        Column("gain", note="95 % over calibration items"),
        Column("candidates", digits=0, note="network calls, in candidates on all items"),
        Column("on the boundary"),
    ]
    rows = [
        TableRow(name, [o.identity_value, o.value, _gain(o), o.spent, "yes" if o.on_boundary else "no"])
        for name, o in outcomes.items()
    ]
    text = (
        f"Objective {recipe.search.objective}, {recipe.search.searcher}, family '{recipe.search.family}', "
        f"{recipe.search.count} prompts x "
        f"{len(recipe.search.seeds)} seeds, common random numbers. These are the prompts it was searched on; the "
        "first table holds the verdict."
    )
    return Table("The search", columns, rows, text=text, corner="pipeline")


def _gain(outcome: SearchOutcome) -> Any:
    from fewstep.metrics.intervals import centred_interval, resample_counts

    if outcome.gain is None:
        return outcome.value - outcome.identity_value
    gain = torch.tensor(outcome.gain, dtype=torch.float64)
    draws = resample_counts(len(gain)) @ gain / len(gain)
    return centred_interval(float(gain.mean()), draws, len(gain)).as_dict()


def _bytes(quantization: Results) -> Block:
    groups = {
        "on disk": {"before": quantization["disk_before"] / 1e6, "after": quantization["disk_after"] / 1e6},
        "in memory": {"before": quantization["resident_before"] / 1e6, "after": quantization["resident_after"] / 1e6},
    }
    return Figure("Bytes of the backbone", figures.bars(groups, unit="MB", digits=2))


def _layers(quantization: Results) -> Block:
    columns = [Column("shape"), Column("bits"), Column("kernel"), Column("before", "B", digits=0)]
    columns += [Column("after", "B", digits=0), Column("reason")]
    rows = []
    for r in quantization["rows"]:
        shape, reason = "x".join(map(str, r["shape"])), r["reason"] or "the scheme"
        rows.append(TableRow(r["name"], [shape, r["bits"], r["kernel"], r["bytes_before"], r["bytes_after"], reason]))
    return Table("Every layer, none skipped silently", columns, rows, corner="layer")


def _number(value: Any) -> float:
    return float(value.mean()) if hasattr(value, "mean") else float(value)


def _digits(metric: str) -> int:
    return {"mmd": 4, "frechet": 3, "psnr": 1}.get(metric.partition(":")[0], 3)


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
