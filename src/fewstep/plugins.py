"""Parts that other installed packages bring, found by their entry points and imported when one is asked for.

A package says in its `pyproject.toml` which name of which group is what:

    [project.entry-points."fewstep.solvers"]
    leapfrog = "my_package.solvers:leapfrog"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from fewstep.errors import PluginError


def plugin_names(group: str) -> list[str]:
    """Names of a group that installed packages bring; nothing is imported."""
    return sorted({point.name for point in entry_points(group=group)})


def load_plugin(group: str, name: str) -> object | None:
    """The object behind a name; None where no package brings it.

    Raises:
        PluginError: it cannot be imported, or two packages bring that name.
    """
    points = list({point.value: point for point in entry_points(group=group, name=name)}.values())
    if not points:
        return None
    if len(points) > 1:
        owners = sorted(map(package_of, points))
        raise PluginError(f"several packages bring {name!r} of {group}", value=owners, hint="Uninstall all but one.")
    try:
        return points[0].load()
    except Exception as error:  # whatever the code of others raises
        raise broken(group, name, f"does not load: {type(error).__name__}: {error}") from error


def broken(group: str, name: str, why: str) -> PluginError:
    """The error of a plug-in that is of no use, with the package it comes from."""
    owner = next((package_of(point) for point in entry_points(group=group, name=name)), "another package")
    what = f"the plug-in {name!r} ({group}) of {owner} {why}"
    return PluginError(what, hint=f"Update or uninstall {owner.partition(' ')[0]}; fewstep works without it.")


def package_of(point: EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    return "an unnamed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
