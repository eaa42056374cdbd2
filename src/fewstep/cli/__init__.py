"""The command line. Commands import what they need when they run, so that `fewstep --help` answers at once."""

from fewstep.cli.app import app

__all__ = ["app"]
