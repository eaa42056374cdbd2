"""`python -m fewstep`: the command line, for launchers that start modules (`torchrun -m fewstep ...`)."""

from fewstep.cli import app

if __name__ == "__main__":
    app()
