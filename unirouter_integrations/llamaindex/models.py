"""The LLMs beside a router, by name: a dict that is checked and kept, never copied, so that models may join later."""

from typing import Any

from llama_index.core.llms import LLM

from unirouter_integrations.checks import check_profiles
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.profiles import LLMProfile
from unirouter_integrations.router import UniRouter


def check_models(router: UniRouter, models: Any) -> None:
    """Raise an error if these are not LLMs by name, each with a profile."""
    if not isinstance(models, dict):
        msg = f"models should be a dict from names to LLMs, not {type(models).__name__}."
        raise InvalidInputError(msg)
    if not models:
        msg = "models is empty; give at least one LLM."
        raise InvalidInputError(msg)
    for name, model in models.items():
        _check_model(name, model)
    check_profiles(router, models)


def register(router: UniRouter, models: dict[str, LLM], name: str, model: LLM, profile: LLMProfile) -> None:
    """Let a new model take part from now on, or replace one."""
    _check_model(name, model)
    if not isinstance(profile, LLMProfile) or profile.name != name:
        msg = f"{name!r} needs its own profile (router.profile({name!r}, ...) makes it), not {profile!r}."
        raise InvalidInputError(msg)
    router.register(profile)  # first: only models that are in both are routed to
    models[name] = model


def unregister(router: UniRouter, models: dict[str, LLM], name: str) -> None:
    """Take a model out of every decision from now on."""
    router.unregister(name)
    models.pop(name, None)


def _check_model(name: object, model: object) -> None:
    if not isinstance(name, str):
        msg = f"models should be named by str, but {name!r} is {type(name).__name__}."
        raise InvalidInputError(msg)
    if not isinstance(model, LLM):
        msg = f"The model {name!r} should be a LlamaIndex LLM, not {type(model).__name__}."
        raise InvalidInputError(msg)
