"""`ChatUniRouter`: a chat model that hands every call to one of several chat models.

It *delegates* the public methods and opens no model run of its own. Calling a chat model inside `_generate` would count
tokens twice, stream them twice and lose bound tools; delegating, every call is exactly one run, the chosen model's.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from langchain_core.callbacks import CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs
from pydantic import ConfigDict, PlainValidator, model_validator
from typing_extensions import override

from unirouter_integrations.decision import RoutingDecision
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.profiles import LLMProfile
from unirouter_integrations.router import UniRouter

Model = Runnable[LanguageModelInput, AIMessage]
M = TypeVar("M", bound=AIMessage)

_SETTINGS_OF_MODELS = ("cache", "rate_limiter", "disable_streaming", "custom_get_token_ids")


class _Routed(NamedTuple):
    """An input whose model is already chosen, as `batch` passes it on to `invoke`."""

    input: Any
    decision: RoutingDecision
    model: Model


def _checked_models(models: object) -> dict[str, Model]:
    """The very dict that was given, not a copy: what is registered later is seen by every copy of the chat model."""
    if not isinstance(models, dict):
        msg = f"models should be a dict from names to chat models, not {type(models).__name__}."
        raise InvalidInputError(msg)
    for name, model in models.items():
        _check_model(name, model)
    return models


def _check_model(name: object, model: object) -> None:
    if not isinstance(name, str):
        msg = f"models should be named by str, but {name!r} is {type(name).__name__}."
        raise InvalidInputError(msg)
    if not isinstance(model, Runnable) or isinstance(model, BaseLLM):
        msg = f"The model {name!r} should be a LangChain chat model, bare or bound, not {type(model).__name__}."
        raise InvalidInputError(msg)


class ChatUniRouter(BaseChatModel):
    """A chat model that sends each call to the registered model with the least expected error plus weighted cost.

    Put it where a chat model stood: `prompt | ChatUniRouter(router=router, models=models) | parser`. The prompt is
    judged by its last human message. Answers come from the chosen model as they are, with the decision added under
    `response_metadata["unirouter"]` (of a stream: on its first chunk); the run's trace carries it as metadata
    `unirouter_model`, `unirouter_cluster` and so on. Errors of the chosen model pass through unchanged.

    Attributes:
        router: The fitted router, with a profile registered for each of the models.
        models: The chat models by name; any of them may have arguments bound. The dict is kept, not copied.
        cost_weight: lambda for the calls of this chat model; None for the router's.

    Raises:
        ValidationError: From the constructor (pydantic's, a `ValueError`), if a model has no profile or is no chat
            model, or a setting is given that only the models can have: `cache`, `rate_limiter`, `disable_streaming`,
            `custom_get_token_ids`.

    Example:
        ```python
        llm = ChatUniRouter(router=router, models={"mini": ChatOpenAI(...), "sonnet": ChatAnthropic(...)})
        chain = prompt | llm | StrOutputParser()
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    router: UniRouter
    models: Annotated[dict[str, Any], PlainValidator(_checked_models)]
    cost_weight: float | None = None

    @model_validator(mode="after")
    def _check_profiles(self) -> "ChatUniRouter":
        if not self.models:
            msg = "models is empty; give at least one chat model."
            raise InvalidInputError(msg)
        for setting in _SETTINGS_OF_MODELS:
            if getattr(self, setting):
                msg = f"{setting} has no effect on a ChatUniRouter, which makes no call itself; set it on its models."
                raise InvalidInputError(msg)
        if self.cost_weight is not None and not (math.isfinite(self.cost_weight) and self.cost_weight >= 0):
            msg = f"cost_weight should be a number of at least 0 or None, but is {self.cost_weight!r}."
            raise InvalidInputError(msg)
        missing = [name for name in self.models if name not in self.router.profiles]
        if missing:
            msg = (
                f"The router has no profile of {', '.join(map(repr, missing))}; it has {list(self.router.models)}. "
                "Register one first: router.register(router.profile(name, prompts, losses, cost=...))."
            )
            raise InvalidInputError(msg)
        return self

    def register(self, name: str, model: Model, profile: LLMProfile) -> None:
        """Let a new model take part from now on, in every chain that holds this chat model; or replace one.

        Args:
            name: Its name.
            model: The chat model.
            profile: Its profile under the same name, as `router.profile(...)` makes it.

        Raises:
            InvalidInputError: If the profile is of another name or of other clusters, or the model is not a chat model.
        """
        _check_model(name, model)
        if not isinstance(profile, LLMProfile) or profile.name != name:
            msg = f"{name!r} needs its own profile (router.profile({name!r}, ...) makes it), not {profile!r}."
            raise InvalidInputError(msg)
        before = self.models.get(name)
        self.models[name] = model
        try:
            self.router.register(profile)
        except InvalidInputError:
            if before is None:
                del self.models[name]
            else:
                self.models[name] = before
            raise

    def unregister(self, name: str) -> None:
        """Take a model out of every decision from now on. Calls that already chose it are finished by it.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        self.router.unregister(name)
        self.models.pop(name, None)

    @override
    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        routed = self._route([input])[0]
        return _noted(routed.model.invoke(routed.input, self._config(routed, config), **_with(stop, kwargs)), routed)

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        routed = (await self._aroute([input]))[0]
        answer = await routed.model.ainvoke(routed.input, self._config(routed, config), **_with(stop, kwargs))
        return _noted(answer, routed)

    @override
    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        routed = self._route([input])[0]
        chunks = routed.model.stream(routed.input, self._config(routed, config), **_with(stop, kwargs))
        first = True
        for chunk in chunks:
            yield cast("AIMessageChunk", _noted(chunk, routed) if first else chunk)
            first = False

    @override
    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        routed = (await self._aroute([input]))[0]
        chunks = routed.model.astream(routed.input, self._config(routed, config), **_with(stop, kwargs))
        first = True
        try:
            async for chunk in chunks:
                yield cast("AIMessageChunk", _noted(chunk, routed) if first else chunk)
                first = False
        finally:  # closed early, this stream closes the model's at once
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Route all inputs with one call of the embedder, then call the chosen models in parallel."""
        try:
            routed: list[Any] = self._route(inputs)
        except Exception:
            if not return_exceptions:
                raise
            routed = inputs  # each is routed alone then, and its error returned in its place
        return super().batch(routed, config, return_exceptions=return_exceptions, **kwargs)

    @override
    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Route all inputs with one call of the embedder, then call the chosen models concurrently."""
        try:
            routed: list[Any] = await self._aroute(inputs)
        except Exception:
            if not return_exceptions:
                raise
            routed = inputs
        return await super().abatch(routed, config, return_exceptions=return_exceptions, **kwargs)

    @override
    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        config = _generate_config(callbacks, tags, metadata, run_name, run_id)
        return _as_result(self.batch(list(messages), config, **_with(stop, kwargs)))

    @override
    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        config = _generate_config(callbacks, tags, metadata, run_name, run_id)
        return _as_result(await self.abatch(list(messages), config, **_with(stop, kwargs)))

    @override
    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        msg = (
            "ChatUniRouter does not bind tools yet; bind them to its models: "
            "models={name: model.bind_tools(tools), ...}."
        )
        raise NotImplementedError(msg)

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        msg = "ChatUniRouter opens no model run of its own; call invoke, stream, batch or generate."
        raise NotImplementedError(msg)

    @property
    @override
    def _llm_type(self) -> str:
        return "unirouter"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        return {"models": sorted(self.models), "cost_weight": self.cost_weight}

    @override
    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [("models", list(self.models)), ("router", self.router), ("cost_weight", self.cost_weight)]

    def _route(self, inputs: Sequence[Any]) -> list[_Routed]:
        if _are_routed(inputs):
            return list(inputs)
        models = dict(self.models)
        decisions = self.router.route_many(self._texts(inputs), **self._conditions(models))
        return _dispatched(inputs, decisions, models)

    async def _aroute(self, inputs: Sequence[Any]) -> list[_Routed]:
        if _are_routed(inputs):
            return list(inputs)
        models = dict(self.models)
        decisions = await self.router.aroute_many(self._texts(inputs), **self._conditions(models))
        return _dispatched(inputs, decisions, models)

    def _conditions(self, models: dict[str, Model]) -> dict[str, Any]:
        return {"cost_weight": self.cost_weight, "among": self.router.registered(models)}

    def _texts(self, inputs: Sequence[LanguageModelInput]) -> list[str]:
        return [self._text(item) for item in inputs]

    def _text(self, prompt: LanguageModelInput) -> str:
        """What a prompt is judged by: its last human message that has text, or all of it if there is none."""
        messages = self._convert_input(prompt).to_messages()
        human = [text for message in messages if _is_human(message) and (text := message.text)]
        return human[-1] if human else "\n".join(message.text for message in messages)

    def _config(self, routed: _Routed, config: RunnableConfig | None) -> RunnableConfig:
        """The caller's config with what was given to the constructor, and the decision, for the trace."""
        given = ensure_config(config)
        own = RunnableConfig(tags=[*(self.tags or []), "unirouter"], metadata=self.metadata or {})
        if self.callbacks is not None:
            own["callbacks"] = _not_yet_in(given.get("callbacks"), self.callbacks)
        merged = merge_configs(own, given)
        decision = {f"unirouter_{key}": value for key, value in routed.decision.as_dict().items()}
        merged["metadata"] = {**merged.get("metadata", {}), **decision}
        return merged


def _is_human(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage) or getattr(message, "role", None) in {"user", "human"}


def _not_yet_in(given: Callbacks, own: Callbacks) -> Callbacks:
    """The constructor's callbacks without those that the call brings along: a handler is called once per event."""
    if not isinstance(own, list):
        return own
    handlers = given if isinstance(given, list) else getattr(given, "handlers", [])
    return [handler for handler in own if handler not in handlers]


def _are_routed(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and all(isinstance(item, _Routed) for item in inputs)


def _dispatched(inputs: Sequence[Any], decisions: Sequence[RoutingDecision], models: dict[str, Model]) -> list[_Routed]:
    return [_Routed(item, decision, models[decision.model]) for item, decision in zip(inputs, decisions, strict=True)]


def _noted(message: M, routed: _Routed) -> M:
    """A copy of the answer that says which model gave it and why; the original may be a cache's.

    Of routers inside routers, the innermost decision is the one that names the model.
    """
    if not isinstance(message, AIMessage):
        msg = (
            f"The model {routed.decision.model!r} answered with {type(message).__name__}, not with an AIMessage. "
            "Register the chat model itself, without a parser behind it."
        )
        raise InvalidInputError(msg)
    metadata = {"unirouter": routed.decision.as_dict(), **message.response_metadata}
    return message.model_copy(update={"response_metadata": metadata})


def _with(stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs if stop is None else {**kwargs, "stop": stop}


def _generate_config(
    callbacks: Callbacks,
    tags: list[str] | None,
    metadata: dict[str, Any] | None,
    run_name: str | None,
    run_id: Any,
) -> RunnableConfig:
    config = RunnableConfig(callbacks=callbacks, tags=tags or [], metadata=metadata or {})
    if run_name is not None:
        config["run_name"] = run_name
    if run_id is not None:
        config["run_id"] = run_id
    return config


def _as_result(answers: Sequence[AIMessage]) -> LLMResult:
    return LLMResult(generations=[[ChatGeneration(message=answer)] for answer in answers])
