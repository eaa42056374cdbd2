from hypothesis import settings

# Shared machines stall now and then: a slow example is not a wrong one.
settings.register_profile("fewstep", deadline=None)
settings.load_profile("fewstep")
