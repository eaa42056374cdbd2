"""What the shipped digit models can do: reconstruction, classification, and samples of the transformer by steps.

    python benchmarks/mnist.py --output src/fewstep/zoo/mnist/evaluation.json

Everything is measured on the shipped reference (2,500 test images), one sample per reference image and of its class.
The Frechet distance is over the features of `mnist-features`; the null compares two halves of the reference.
"""

import argparse
import time

import torch
from diffusers import AutoencoderKL

from fewstep.data import load_mnist
from fewstep.denoiser import Backbone, Guided
from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.metrics.classifier import load_classifier
from fewstep.metrics.distances import frechet, psnr
from fewstep.metrics.features import FeatureNet
from fewstep.pipelines import load_pipeline
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.runs.environment import environment
from fewstep.zoo import shipped
from fewstep.zoo.dit import NO_CLASS

BATCH = 250


@torch.no_grad()
def draw(pipe, labels: torch.Tensor, steps: int, guidance: float) -> torch.Tensor:
    """Images (N, 3, 32, 32) in [0, 1], sample i from seed i, along the pipeline's own scheduler."""
    plan = plan_of_scheduler(pipe.scheduler, steps)
    config, parts = pipe.transformer.config, []
    for first in range(0, len(labels), BATCH):
        part = labels[first : first + BATCH]
        nothing = {"class_labels": torch.full_like(part, NO_CLASS)}
        network = Guided(Backbone(pipe.transformer), {"class_labels": part}, nothing, guidance)
        shape = (config.in_channels, config.sample_size, config.sample_size)
        latents = sample(plan, network, seeds=range(first, first + len(part)), shape=shape)
        parts.append(decoded(pipe.vae, latents))
    return torch.cat(parts)


def decoded(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    parts = [decoded(vae, vae.encode(2 * part - 1).latent_dist.mean) for part in images.split(BATCH)]
    return torch.cat(parts)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="src/fewstep/zoo/mnist/evaluation.json")
    parser.add_argument("--model", default="mnist-dit", help="shipped name or folder of stage dit")
    parser.add_argument("--features", default="", help="folder of stage classifier; the shipped one unless given")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--count", type=int, default=2500)
    options = parser.parse_args()
    began = time.perf_counter()
    images, captions = load_mnist()
    images, captions = images[: options.count].float() / 255, captions[: options.count]
    net = load_classifier(options.features or shipped("mnist-features"))
    judge, features = net, FeatureNet("mnist-features", net.features)
    pipe = load_pipeline(options.model)
    real = features(images)
    again = reconstructed(pipe.vae, images)

    def quality(found: torch.Tensor) -> dict[str, float]:
        right = torch.cat(
            [judge.score(found[i : i + BATCH], captions[i : i + BATCH]) for i in range(0, len(found), BATCH)]
        )
        return {"accuracy": round(float(right.mean()), 4), "frechet": round(frechet(features(found), real), 3)}

    labels = torch.tensor([pipe.labels[caption] for caption in captions])
    rows = []
    for guidance in options.guidance:
        for steps in options.steps:
            before = time.perf_counter()
            found = draw(pipe, labels, steps, guidance)
            seconds = time.perf_counter() - before
            rows.append({"steps": steps, "guidance": guidance, **quality(found), "seconds": round(seconds, 1)})
            print(rows[-1], flush=True)
    result = {
        "environment": environment(),
        "images": len(images),
        "classifier_accuracy": quality(images)["accuracy"],
        "reconstruction": {**quality(again), "psnr": round(float(psnr(again, images).mean()), 2)},
        "null_frechet": round(frechet(real[::2], real[1::2]), 3),
        "samples": rows,
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(options.output, result)


if __name__ == "__main__":
    main()
