"""fewstep: few network evaluations, few bits, and proof of what that cost."""

__version__ = "0.1.0"
