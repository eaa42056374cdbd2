"""What a Q-Sched run has shown, in words that follow the numbers and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.jobs.q_sched.names import FULL, LOW, LOW_TUNED, SYSTEMS, beside

Results = Mapping[str, Any]


def _main_metric(evaluation: Results) -> str:
    return next(name for name in evaluation["metrics"] if name.startswith("mmd:"))


def sentence(results: Results) -> str:
    """What happened."""
    quantization = results["quantization"]
    smaller = quantization["disk_before"] / quantization["disk_after"]
    return f"The network became {smaller:.1f} times smaller. {_measured(results)}{_decision(results['verdict'])}"


def _measured(results: Results) -> str:
    """What held-out prompts say, where there were any."""
    if "evaluation" not in results:
        return "Nothing was measured on held-out prompts (evaluation.count=0)."
    evaluation = results["evaluation"]
    metric = _main_metric(evaluation)
    value = {name: evaluation["systems"][name][metric]["mean"] for name in SYSTEMS}
    change = _difference(evaluation, LOW_TUNED, LOW, metric)
    verb = "improved" if change["high"] < 0 else "worsened" if change["low"] > 0 else "did not measurably change"
    won = "below" if value[LOW_TUNED] < value[FULL] else "above"
    return (
        f"On {evaluation['prompts']} held-out prompts and "
        f"{evaluation['seeds']} seeds, Q-Sched {verb} the quantized pipeline's distance to the reference "
        f"({value[LOW]:.4f} to {value[LOW_TUNED]:.4f}; full precision: {value[FULL]:.4f}, so the result is {won} it), "
        f"at no cost per step.{_side_effect(evaluation)}{_beside(results, metric)}"
    )


def _beside(results: Results, metric: str) -> str:
    """Where another pipeline stands that was to be shown beside this one."""
    found = results["evaluation"]["systems"]
    models = results["recipe"]["evaluation"]["beside"]
    told = (f" {model} in the same scheme stands at {found[beside(model)][metric]['mean']:.4f}." for model in models)
    return "".join(told)


def _side_effect(evaluation: Results) -> str:
    """Rewards like sameness: say so when the search paid with variety."""
    metric = next((m for m, d in evaluation["metrics"].items() if d["kind"] == "diversity"), None)
    if metric is None or _difference(evaluation, LOW_TUNED, LOW, metric)["high"] >= 0:
        return ""
    before, after = (evaluation["systems"][name][metric]["mean"] for name in (LOW, LOW_TUNED))
    return f" It cost diversity between seeds ({before:.3f} to {after:.3f})."


def _decision(verdict: Results) -> str:
    """What the test on calibration items that the search did not see has decided."""
    if "gain" not in verdict:
        return ""
    seeds = len(verdict["seeds"])
    gain, pairs = verdict["gain"], f"{verdict['prompts']} prompts x {seeds} seed{'s' if seeds > 1 else ''}"
    change = f"{gain['mean']:.2g} ({gain['low']:.2g} to {gain['high']:.2g})"
    power = f"; the test finds a gain of {verdict['detectable']:.2g} in four cases of five"
    if verdict["tuned"]:
        return (
            f" A paired test on calibration items that the search did not see ({pairs}{power}) agrees: the objective "
            f"rose by {change}, so the tuned plan is in the pipeline."
        )
    return (
        f" Nothing to gain here: on calibration items that the search did not see ({pairs}{power}) the objective "
        f"changed by {change}, so the untuned plan was kept in the pipeline."
    )


def _difference(evaluation: Results, first: str, second: str, metric: str) -> Results:
    found: Results = evaluation["comparisons"][f"{first} - {second}"][metric]
    return found
