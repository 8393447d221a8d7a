"""The library as it stands: its modules and public names, found by walking the package, whatever it is made of today."""

import pkgutil
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import kitchen

NAME = kitchen.__name__


@cache
def modules() -> dict[str, ModuleType]:
    """Every module of the package by its full name, the package itself first; those with an underscore are nobody's business."""
    found = [item.name for item in pkgutil.walk_packages(kitchen.__path__, f"{NAME}.")]
    return {name: import_module(name) for name in [NAME, *found] if "._" not in name}


@cache
def exported(module: ModuleType) -> dict[str, Any]:
    """What a module's `__all__` names, but for modules, which have pages of their own; without one there is nothing public."""
    values = {name: getattr(module, name) for name in vars(module).get("__all__", ())}
    return {name: value for name, value in values.items() if not isinstance(value, ModuleType)}


def inside(package: ModuleType) -> list[ModuleType]:
    """Modules and packages below a package, in any depth."""
    return [module for name, module in modules().items() if name.startswith(f"{package.__name__}.")]


def home(module: ModuleType, name: str, value: Any) -> str:
    """The module in which an exported thing is defined: another one where it is only handed on."""
    defined = getattr(value, "__module__", None)
    known = (
        defined in modules()
        and getattr(value, "__qualname__", name) == name
        and name in exported(modules()[defined])
    )
    if isinstance(defined, str) and known:
        return defined
    # a table does not know where it was written: a package hands on what is the very same object in a module of it
    makers = [one.__name__ for one in inside(module) if exported(one).get(name) is value and not inside(one)]
    return makers[0] if makers else module.__name__


@cache
def homes() -> dict[str, tuple[str, ...]]:
    """Every public name with the modules that define something of that name."""
    found: dict[str, dict[str, None]] = {}
    for module in modules().values():
        for name, value in exported(module).items():
            found.setdefault(name, {})[home(module, name, value)] = None
    return {name: tuple(places) for name, places in found.items()}


def public(name: str) -> Any:
    """The one public thing of that name, wherever its module stands: the site does not break when a module moves."""
    places = homes().get(name, ())
    if len(places) != 1:
        raise LookupError(
            f"{name!r} should be public in one module of {NAME}; it is in {', '.join(places) or 'none'}"
        )
    return getattr(modules()[places[0]], name)
