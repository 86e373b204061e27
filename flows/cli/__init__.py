"""The ``visionmill`` command: :func:`main` is the console script."""

from flows.cli.app import main

__all__ = ["main"]
