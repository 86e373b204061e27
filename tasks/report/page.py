"""Templates of pages that are read offline: what comes from data is escaped, an undefined name is an error."""

from __future__ import annotations

import functools

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template


@functools.cache
def page_template(package: str, name: str) -> Template:
    """A template beside the code of ``package``; it may include the shared parts of ``tasks.report``."""
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("tasks.report", "")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
