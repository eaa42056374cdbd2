"""Many clients of `fewstep serve` at one time: is any request lost, how long do they wait, does memory stay flat?

    python benchmarks/serve.py
    python benchmarks/serve.py --clients 20 --seconds 10 --output quick.json

The command itself serves the shipped student in one thread on loopback. Every client asks for one picture after the
other, with its own prompts and seeds; where it is refused it waits a moment and goes on. At the end one picture of each
client is asked for again, alone: the bytes must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from fewstep.files import write_json
from fewstep.runs.environment import environment

PROMPTS = ("cat face", "red heart", "dog face", "green apple", "a house", "the moon")


def ask(url: str, prompt: str, seed: int) -> tuple[int, str]:
    """Status and the picture (or the message)."""
    body = json.dumps({"prompt": prompt, "seed": seed, "model": "w4a8"}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url + "/v1/images/generations", body), timeout=120
        ) as answer:
            return answer.status, json.load(answer)["data"][0]["b64_json"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]
    except OSError as error:
        return 0, str(error)


def client(url: str, number: int, end: float, seen: list[tuple[int, float]], drawn: dict[int, tuple[str, str]]) -> None:
    """Asks until the end."""
    pause, k = random.Random(number), 0
    while time.monotonic() < end:
        k += 1
        prompt, begun = PROMPTS[k % len(PROMPTS)], time.monotonic()
        status, picture = ask(url, prompt, number)
        seen.append((status, time.monotonic() - begun))
        if status == 200:
            drawn[number] = (prompt, picture)
        else:
            time.sleep(pause.uniform(0.5, 1.5))


def resident(process: subprocess.Popen[bytes]) -> float:
    """MB of the server."""
    for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def measured(url: str, server: subprocess.Popen[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Statuses, latencies and the memory of the server while all clients ask."""
    for k in range(8):  # what a first call keeps is no leak
        ask(url, PROMPTS[k % len(PROMPTS)], k)
    seen: list[tuple[int, float]] = []
    drawn: dict[int, tuple[str, str]] = {}
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=client, args=(url, k, end, seen, drawn)) for k in range(clients)]
    memory = [resident(server)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        time.sleep(min(2.0, seconds / 4))
        memory.append(resident(server))
    for thread in threads:
        thread.join()
    waits = sorted(wait for status, wait in seen if status == 200)
    again = [ask(url, prompt, number)[1] == picture for number, (prompt, picture) in drawn.items()]
    return {
        "requests": len(seen), "statuses": {str(s): sum(x == s for x, _ in seen) for s in sorted({x for x, _ in seen})},
        "lost": sum(status not in (200, 429) for status, _ in seen),
        "seconds_median": statistics.median(waits), "seconds_95": waits[int(0.95 * len(waits))],
        "pictures_per_second": len(waits) / seconds, "clients_served": len(drawn), "equal_when_asked_alone": all(again),
        "memory_mb": {"begin": memory[0], "quarter": memory[len(memory) // 4], "end": memory[-1], "most": max(memory)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--output", default="results/serve.json")
    told = parser.parse_args()
    url = f"http://127.0.0.1:{told.port}"
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "fewstep", "serve", "emoji-student", "--port", str(told.port)]
        votes = ["--votes", str(Path(place) / "votes.jsonl")]
        server = subprocess.Popen([*command, *votes], env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            while ask(url, "cat face", 0)[0] != 200:
                time.sleep(0.5)
            found = measured(url, server, told.clients, told.seconds)
        finally:
            server.terminate()
            ended = server.wait(60)
    load = os.getloadavg()[0]
    settings = {"clients": told.clients, "seconds": told.seconds, "queue": 32}
    result = {"environment": environment(), "settings": settings, "load": load, **found, "server_ended": ended}
    write_json(told.output, result, over="all")
    print({name: value for name, value in result.items() if name != "environment"})


if __name__ == "__main__":
    main()
