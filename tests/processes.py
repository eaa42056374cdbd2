"""Processes of their own, for tests of kills and of several parties.

A server imports the libraries once in each worker of the tests, and the processes are forks of it: the imports would
take longer than what most of them do. Where a fresh interpreter is what matters (what is imported when, the command
itself), a test starts `sys.executable`.
"""

import multiprocessing
import os
import socket

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "fewstep.cli.app", "fewstep.jobs.align.job", "fewstep.jobs.auto.job", "fewstep.jobs.distill.job",
        "fewstep.jobs.inspect.job", "fewstep.jobs.q_sched.job", "fewstep.jobs.search.job", "fewstep.jobs.zoo",
        "accelerate", "diffusers.loaders.peft", "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.transformers.dit_transformer_2d", "diffusers.models.unets.unet_2d_condition",
        "diffusers.pipelines.dit.pipeline_dit", "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "diffusers.quantizers", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.run",
        "transformers.models.clip.modeling_clip", "hypothesis", "matplotlib.figure", "pytest", "sklearn",
    ]
)  # fmt: skip


def start(function, *given, out=None, **environment):
    """A process that calls `function(*given)`: a `multiprocessing.Process`, started.

    Args:
        function: one of the top level of a module, by which the process finds it.
        given: its arguments.
        out: the file that takes all it prints.
        environment: variables beside our own.
    """
    process = CONTEXT.Process(target=_run, args=(function, given, out, {**os.environ, **environment}))
    process.start()
    return process


def start_together(function, *given, files):
    """Processes of one training, one for each file, which takes what it prints: `function(*given, index)`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(len(files)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(function, *given, k, out=file, RANK=str(k), LOCAL_RANK=str(k), **shared) for k, file in enumerate(files)
    ]


def _run(function, given, out, environment):
    os.environ.clear()
    os.environ.update(environment)
    if out is not None:
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
    function(*given)
