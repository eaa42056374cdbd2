import os

from hypothesis import settings

# One thread a worker (and in every process that a test starts): sums of floats depend on how many threads share them,
# and the threads of two workers would hinder each other. It must be set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

# Shared machines stall now and then: a slow example is not a wrong one.
settings.register_profile("fewstep", deadline=None)
settings.load_profile("fewstep")
