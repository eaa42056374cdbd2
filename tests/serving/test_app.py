"""The endpoint as clients see it: a real server on loopback, stand-ins only for the time that a drawing takes."""

import base64
import contextlib
import io
import json
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch
import uvicorn
from PIL import Image

import fewstep as fs
from fewstep import recipes
from fewstep.errors import NonFiniteError
from fewstep.files import read_json
from fewstep.jobs import auto
from fewstep.jobs.align.votes import read_votes
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.runs import Run
from fewstep.serving.app import playground
from fewstep.serving.models import Served, ServedModel, served
from fewstep.serving.votes import Votes
from fewstep.solvers import ddim, grids

from ..pipelines import tiny_pipelines


@contextlib.contextmanager
def serving(load, file, **settings):
    config = uvicorn.Config(playground(load, Votes(file), **settings), port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def ask(url, body=None, raw=None):
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def when_ready(base):
    while not ask(base + "/health")[1]["ready"]:
        time.sleep(0.02)
    return base


@pytest.fixture(scope="module")
def columns():
    return served("emoji-student", "w4a8", steps=2).models


@pytest.fixture(scope="module")
def base(columns, tmp_path_factory):
    with serving(lambda: Served(columns), tmp_path_factory.mktemp("votes") / "votes.jsonl") as base:
        yield when_ready(base)


class Drawing(ServedModel):
    """A model whose drawings are given."""

    def __init__(self, draw):
        object.__setattr__(self, "name", "one")
        object.__setattr__(self, "drawn", draw)
        object.__setattr__(self, "plan", ddim(Cosine(), Prediction("epsilon"), grids.uniform(Cosine(), 1)))

    def about(self):
        return {"id": self.name, "steps": 1, "plan": "", "bytes": 0}

    def draw(self, prompt, seeds, size=None):
        return self.drawn(prompt), 1.0


def picture(text):
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def test_models_are_the_columns(base):
    status, found = ask(base + "/v1/models")
    rows = {row["id"]: row for row in found["data"]}
    assert status == 200
    assert list(rows) == ["full precision", "w4a8", "1 steps", "4 steps"]
    assert rows["4 steps"]["steps"] == 4
    assert rows["w4a8"]["bytes"] < 0.2 * rows["full precision"]["bytes"]


def test_a_picture_is_that_of_generate(base):
    asked = {"prompt": "red heart", "seed": 5, "n": 2, "model": "w4a8", "size": "64x64", "quality": "of other services"}
    status, found = ask(base + "/v1/images/generations", asked)
    pipe = fs.quantize(fs.load("emoji-student"), "w4a8", progress=False)
    expected = fs.generate(pipe, "red heart", seeds=[5, 6], steps=2, output_type="pil")
    assert status == 200
    assert found["steps"] == 2
    assert [row["seed"] for row in found["data"]] == [5, 6]
    for row, wanted in zip(found["data"], expected, strict=True):
        assert picture(row["b64_json"]).tobytes() == wanted.tobytes()


def test_previews_end_in_the_picture(base):
    _, found = ask(base + "/compare", {"prompt": "cat face", "seed": 3, "previews": True})
    for column in found["columns"]:
        assert len(column["previews"]) == column["steps"]
        last, whole = (torch.tensor(list(picture(p).tobytes())) for p in (column["previews"][-1], column["image"]))
        # the same numbers but for the order of one sum: the last step already goes to the clean sample
        assert (last - whole).abs().max() <= 1


def test_votes_are_pairs_that_align_reads(base, columns):
    _, found = ask(base + "/compare", {"prompt": "dog face", "seed": 1})
    status, kept = ask(base + "/votes", {"comparison": found["comparison"], "chosen": "w4a8"})
    assert status == 200
    assert kept["pairs"] == 3
    prompts, chosen, rejected = read_votes(kept["file"], 64)
    assert prompts == ["dog face"] * 3
    assert (chosen == chosen[0]).all()
    shown = {row["id"]: picture(row["image"]).tobytes() for row in found["columns"]}
    assert bytes(chosen[0].permute(1, 2, 0).flatten().tolist()) == shown["w4a8"]
    assert bytes(rejected[0].permute(1, 2, 0).flatten().tolist()) == shown["full precision"]
    # once each
    status, answer = ask(base + "/votes", {"comparison": found["comparison"], "chosen": "w4a8"})
    assert status == 400
    assert "no such comparison" in answer["error"]["message"]


def test_a_file_without_a_last_line_break_keeps_its_last_vote(tmp_path):
    mine = tmp_path / "votes.jsonl"
    mine.write_text('{"prompt": "mine", "chosen": "a.png", "rejected": "b.png"}')
    votes = Votes(mine)
    shown = votes.shown("theirs", 0, {"one": torch.zeros(3, 4, 4), "two": torch.ones(3, 4, 4)})
    assert votes.vote(shown, "two") == 1
    assert [json.loads(line)["prompt"] for line in mine.read_text().splitlines()] == ["mine", "theirs"]


def test_a_run_is_served_as_it_was_measured(tmp_path):
    call = {"height": 32, "width": 32}
    recipe = recipes.load("q-sched", ["model=emoji-student", "steps=2", f"call={json.dumps(call)}", "guidance=1.5"])
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run:
        run.claim()
        low = fs.quantize(fs.load("emoji-student"), "w4a8", progress=False)
        plan = fs.plan_of(low, 2, guidance_scale=1.5, **call)
        fs.save(low, run.artifact("pipeline"), plan=plan.scaled([1.0, 1.1], [0.9, 1.0]))
    found = served(str(tmp_path / "run")).models
    assert [model.name for model in found] == ["full precision", "w4a8", "w4a8, tuned"]
    for model in found:
        assert model.sampler.guidance == 1.5
        assert model.draw("cat face", [0])[0].shape == (1, 3, 32, 32)


def test_the_front_of_a_choice_is_opened_point_by_point(tmp_path):
    pipe = tiny_pipelines.stable_diffusion(tmp_path / "tokens")
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "tiny")
    space = {
        "steps": [1, 2], "solvers": ["own"], "schemes": ["none", "w8a8"], "parts": ["none"], "per_step": False,
        "q_sched": 0, "guidance": [],
    }  # fmt: skip
    items = {"items": 4, "conditions": ["a", "b"]}
    told = {
        "kind": "auto", "model": str(tmp_path / "tiny"), "steps": 2, "space": space,
        "search": {**items, "rounds": 3, "reference_steps": 2}, "evaluation": {**items, "pictures": 0},
    }  # fmt: skip
    with Run(tmp_path / "run", (recipe := recipes.resolve(told)).plain(), quiet=True) as run:
        auto.run(recipe, run)
    results = read_json(tmp_path / "run" / "results.json")
    with serving(lambda: served(str(tmp_path / "run")), tmp_path / "votes.jsonl") as base:
        points = ask(when_ready(base) + "/front")[1]["points"]
        assert [point["bytes"] for point in points] == [row["size"] for row in results["front"]]
        assert [point["chosen"] for point in points].index(True) == results["chosen"]
        assert [m["id"] for m in ask(base + "/v1/models")[1]["data"]] == ["reference", "chosen"]
        for k, row in enumerate(results["front"]):
            status, about = ask(base + "/front", {"point": k})
            assert (status, about["steps"]) == (200, row["steps"])
            _, found = ask(base + "/compare", {"prompt": "cat face", "seed": 3})
            assert [column["id"] for column in found["columns"]] == ["reference", "chosen", points[k]["name"]]
            if k == results["chosen"]:  # the folder that the run wrote draws what the point draws
                assert found["columns"][2]["image"] == found["columns"][1]["image"]
        status, answer = ask(base + "/front", {"point": len(points)})
        assert status == 400
        assert f"0 to {len(points) - 1}" in answer["error"]["message"]


def test_a_model_has_no_front(base):
    assert ask(base + "/front")[1] == {"points": []}
    status, answer = ask(base + "/front", {"point": 0})
    assert status == 400
    assert "run of auto" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "prompt"),
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": "a" * 5000}, 400, "at most 4000"),
        ({"prompt": "a" * 100_000}, 413, "65536"),
        ({"prompt": "a", "seed": 1 << 64}, 400, "seed"),
        ({"prompt": "a", "seed": -1}, 400, "seed"),
        ({"prompt": "a", "n": 9}, 400, "n:"),
        ({"prompt": "a", "size": "64"}, 400, "width x height"),
        ({"prompt": "a", "size": "64x100000"}, 400, "width x height"),
        ({"prompt": "a", "size": "65x64"}, 400, "65"),
        ({"prompt": "a", "model": "w4a9"}, 404, "w4a8"),
        ({"prompt": "a", "response_format": "url"}, 400, "b64_json"),
    ],
)
def test_mistakes_are_answered(base, body, status, said):
    found, answer = ask(base + "/v1/images/generations", body)
    assert found == status
    assert said in answer["error"]["message"]


def test_no_json_is_answered(base):
    assert ask(base + "/v1/images/generations", raw=b"\xff{")[0] == 400
    assert ask(base + "/v1/images/generations", raw=b"[" * 60_000)[0] == 400


def test_page_asks_nobody_else(base):
    with urllib.request.urlopen(base) as answer:
        text = answer.read().decode()
    assert "http://" not in text
    assert "https://" not in text


def test_while_it_loads_and_when_it_cannot(tmp_path):
    go = threading.Event()

    def load():
        go.wait(30)
        raise ValueError("no weights")

    with serving(load, tmp_path / "votes.jsonl") as base:
        assert ask(base + "/v1/models")[0] == 503
        go.set()
        status, answer = ask(when_ready(base) + "/v1/models")
        assert status == 500
        assert "no weights" in answer["error"]["message"]


def test_a_full_queue_refuses_and_nothing_is_lost(tmp_path):
    go, answers = threading.Event(), []

    def draw(_):
        go.wait(30)
        return torch.zeros(1, 3, 4, 4)

    with serving(lambda: Served([Drawing(draw)]), tmp_path / "votes.jsonl", queue=4) as base:
        url = when_ready(base) + "/v1/images/generations"
        clients = [threading.Thread(target=lambda: answers.append(ask(url, {"prompt": "a"})[0])) for _ in range(12)]
        for client in clients:
            client.start()
        while answers.count(429) < 8:
            time.sleep(0.01)
        go.set()
        for client in clients:
            client.join(30)
        assert sorted(answers) == [200] * 4 + [429] * 8
        assert ask(url, {"prompt": "a"})[0] == 200


def test_too_slow_is_told_and_the_next_is_drawn(tmp_path):
    go = threading.Event()

    def draw(prompt):
        if prompt == "slow":
            go.wait(30)
        return torch.zeros(1, 3, 4, 4)

    with serving(lambda: Served([Drawing(draw)]), tmp_path / "votes.jsonl", timeout=0.5) as base:
        url = when_ready(base) + "/v1/images/generations"
        assert ask(url, {"prompt": "slow"})[0] == 504
        go.set()
        assert ask(url, {"prompt": "fast"})[0] == 200


def test_nan_and_bugs_are_contained(tmp_path):
    def draw(prompt):
        raise {"nan": NonFiniteError("the network produced NaN"), "bug": KeyError("x")}[prompt]

    with serving(lambda: Served([Drawing(draw)]), tmp_path / "votes.jsonl") as base:
        url = when_ready(base) + "/v1/images/generations"
        for prompt, kind in (("nan", "not_finite"), ("bug", "server")):
            status, answer = ask(url, {"prompt": prompt})
            assert status == 500
            assert answer["error"]["type"] == kind
