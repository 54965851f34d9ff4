"""Which names are public: what each package exports, and that public signatures mention nothing else."""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any, get_type_hints

import pytest

import unirouter_integrations
from unirouter_integrations.embedding import EmbedderLike
from unirouter_integrations.grading import ModelLike, ScorerLike

DOORS = sorted(
    module.name
    for module in pkgutil.walk_packages(unirouter_integrations.__path__, "unirouter_integrations.")
    if not any(part.startswith("_") for part in module.name.split("."))
)
NOT_DOORS = {"unirouter_integrations.cli"}  # commands, not an interface for programs
NOT_MADE_BY_USERS = {"Learning", "Snapshot"}  # methods of a router make them


def door(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["unirouter_integrations", *(each for each in DOORS if each not in NOT_DOORS)])
def test_exported_members(name: str) -> None:
    """`__all__` is sorted and complete, and all of it is there."""
    module = door(name)
    assert list(module.__all__) == sorted(module.__all__, key=lambda each: (not each.isupper(), each))
    assert all(hasattr(module, each) for each in module.__all__)
    public = {
        each
        for each, value in vars(module).items()
        if not each.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith(name)
    }
    assert public <= set(module.__all__)


def test_at_most_thirty_names_at_the_top() -> None:
    """Each earns its place."""
    assert len(unirouter_integrations.__all__) <= 30


def exported() -> dict[str, Any]:
    return {
        each: getattr(module, each)
        for module in map(door, ["unirouter_integrations", *(name for name in DOORS if name not in NOT_DOORS)])
        for each in module.__all__
    }


def classes_in(hint: Any) -> set[type]:
    if isinstance(hint, type) and not getattr(hint, "__args__", None):
        return {hint}
    return {found for argument in getattr(hint, "__args__", ()) or () for found in classes_in(argument)}


def test_every_type_in_a_public_signature_is_exported() -> None:
    """Whoever is given or gives an object can name its type."""
    names = exported()
    unions = (EmbedderLike, ModelLike, ScorerLike)  # each names its members
    public = {id(value) for value in (*names.values(), *(each for union in unions for each in classes_in(union)))}
    hidden: set[str] = set()
    for owner, value in names.items():
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        functions = [value] if inspect.isfunction(value) else []
        if inspect.isclass(value) and value.__module__.startswith("unirouter_integrations"):
            made = None if owner in NOT_MADE_BY_USERS else "__init__"
            for each, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if inspect.isfunction(function) and (not each.startswith("_") or made == each):
                    functions.append(function)
        for function in functions:
            try:
                hints = get_type_hints(function)
            except NameError:  # a name that is only imported for type checkers
                continue
            for found in {each for hint in hints.values() for each in classes_in(hint)}:
                if found.__module__.startswith("unirouter_integrations") and id(found) not in public:
                    hidden.add(f"{owner}: {found.__qualname__}")
    assert hidden == set()
