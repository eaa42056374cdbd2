import json

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics import distances, evaluate, load_features
from fewstep.metrics.evaluate import ReferenceFeatures

PROMPTS = [f"picture {i}" for i in range(40)]


def pictures(n, seed):
    """Smooth random pictures, so that neighbours and colours mean something."""
    small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, 16, mode="bilinear")


class Brightness:
    name = "brightness"

    def score(self, images, prompts):
        assert len(images) == len(prompts)
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def found():
    good = pictures(80, 1).unflatten(0, (2, 40))
    noise = torch.randn(good.shape, generator=torch.Generator().manual_seed(3))
    systems = {
        "full": good,
        "close": (good + 0.01 * noise).clamp(0, 1),
        "dark": 0.5 * good,
        "collapsed": good[:, :1].expand_as(good).clone() + 0.001 * noise,
    }
    nets = [load_features("random"), load_features("pixels:2")]
    return evaluate(
        systems, pictures(150, 2), PROMPTS, nets, Brightness(), "full", compare=[("close", "dark")], resamples=200
    )


def test_everything_is_plain_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for row in found["systems"].values():
        for value in row.values():
            assert value["low"] <= value["mean"] <= value["high"]
            assert value["n"] == 40
            assert sum(value["seeds"]) / len(value["seeds"]) == pytest.approx(value["mean"])
    assert set(found["metrics"]) == {metric for row in found["systems"].values() for metric in row}


def test_damage_is_ordered_and_the_null_is_beside_it(found):
    for net in ("random", "pixels:2"):
        value = {name: row[f"mmd:{net}"] for name, row in found["systems"].items()}
        null = found["null"][f"mmd:{net}"]
        assert abs(null["mean"]) < 0.3 * value["dark"]["mean"]
        assert abs(value["full"]["mean"]) < 0.3 * value["dark"]["mean"] < value["collapsed"]["mean"]
        assert found["systems"]["collapsed"][f"recall:{net}"]["mean"] < 0.3
        assert found["systems"]["full"][f"recall:{net}"]["mean"] > 0.5
        assert found["systems"]["collapsed"][f"frechet:{net}"]["mean"] > found["null"][f"frechet:{net}"]["high"]
    assert found["null_sizes"] == [40, 110]


def test_paired_numbers(found):
    psnr = {name: row["psnr"]["mean"] for name, row in found["systems"].items() if name != "full"}
    assert "psnr" not in found["systems"]["full"]
    assert psnr["close"] == pytest.approx(40, abs=1)  # noise of 0.01: -20 log10(0.01)
    dark = found["differences"]["dark"]["judge:brightness"]
    full = found["systems"]["full"]["judge:brightness"]
    assert dark["mean"] == pytest.approx(-0.5 * full["mean"], rel=1e-5)
    assert dark["high"] < 0
    differences = found["differences"]
    for metric, pair in found["comparisons"]["close - dark"].items():
        if metric != "psnr":  # the others are differences of differences
            expected = differences["close"][metric]["mean"] - differences["dark"][metric]["mean"]
            assert pair["mean"] == pytest.approx(expected, abs=1e-9)
    close = differences["close"]["mmd:random"]
    own = found["systems"]["close"]["mmd:random"]
    assert close["high"] - close["low"] < 0.3 * (own["high"] - own["low"])  # same prompts, same resamples


def test_order_and_seed_decide_nothing_but_the_resamples():
    good = pictures(20, 1)[None]
    nets = [load_features("pixels:2")]
    first = evaluate({"a": good, "b": 0.9 * good}, pictures(60, 2), PROMPTS[:20], nets, resamples=50)
    second = evaluate({"b": 0.9 * good, "a": good}, pictures(60, 2), PROMPTS[:20], nets, paired_to="a", resamples=50)
    assert first["systems"]["b"] == second["systems"]["b"]
    assert first["differences"] == second["differences"]
    assert "diversity:pixels:2" not in first["systems"]["a"]  # one seed has no diversity


def test_null_from_stored_matrices_equals_the_plain_functions():
    real = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, order = ReferenceFeatures.of(real), torch.randperm(50, generator=torch.Generator().manual_seed(1))
    left, right = order[:20], order[20:]
    assert target.mmd2(left, right) == pytest.approx(distances.mmd2(real[left], real[right], target.kernel), rel=1e-9)
    flags = distances.precision_recall(real[left], real[right])
    assert target.precision_recall(left, right) == pytest.approx([float(f.double().mean()) for f in flags])
    assert target.similarity == pytest.approx(distances.mean_similarity(real, target.kernel), rel=1e-12)


def test_mistakes_are_named():
    good, nets = pictures(20, 1)[None], [load_features("pixels:2")]
    reference, prompts = pictures(60, 2), PROMPTS[:20]
    with pytest.raises(FewstepError, match="Did you mean 'full'"):
        evaluate({"full": good}, reference, prompts, nets, paired_to="ful")
    with pytest.raises(FewstepError, match="names no system"):
        evaluate({"full": good}, reference, prompts, nets, compare=[("full", "other")])
    with pytest.raises(FewstepError, match="'b' must be"):
        evaluate({"a": good, "b": good[:, :5]}, reference, prompts, nets)
    with pytest.raises(FewstepError, match="more than three prompts"):
        evaluate({"a": good[:, :0]}, reference, [], nets)
    with pytest.raises(FewstepError, match="one name"):
        evaluate({"a": good}, reference, prompts, nets * 2)


def test_scores_of_a_judge_that_are_no_numbers_are_refused():
    class Broken:
        name = "broken"

        def score(self, images, prompts):
            return torch.full((len(images),), float("nan"))

    with pytest.raises(FewstepError, match="broken are not finite"):
        evaluate({"a": pictures(20, 1)[None]}, pictures(60, 2), PROMPTS[:20], [load_features("pixels:2")], Broken())
