"""`ChatUniRouter`: a chat model that hands every call to one of several chat models.

It *delegates* the public methods and opens no model run of its own. Calling a chat model inside `_generate` would count
tokens twice, stream them twice and lose bound tools; delegating, every call is exactly one run, the chosen model's.
"""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from langchain_core.callbacks import CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ensure_config, get_config_list, merge_configs, var_child_runnable_config
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, model_validator
from typing_extensions import override

from unirouter_integrations.checks import check_cost_weight, check_profiles
from unirouter_integrations.decision import Pool, RoutingDecision
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.errors import InvalidInputError, NoModelError, UnknownModelError
from unirouter_integrations.escalation import after_check, after_refusal, as_check, passes
from unirouter_integrations.fallback import Cooldowns, next_best, within, without_embedding
from unirouter_integrations.langchain.capabilities import able, joint_profile, needs_of, why_not
from unirouter_integrations.langchain.messages import JudgedBy, is_refusal, is_under_way, judged_text, last_model
from unirouter_integrations.langchain.prompt_cache import history_costs
from unirouter_integrations.langchain.registry import Model, ModelRegistry, checked_model, snapshot
from unirouter_integrations.profiles import LLMProfile
from unirouter_integrations.profiling import Price
from unirouter_integrations.profiling.runner import run_in_background
from unirouter_integrations.router import UniRouter

M = TypeVar("M", bound=AIMessage)

_NO_PRICE = (
    'sticky="cache" needs the price of {!r}: '
    "models=ModelRegistry(models, prices={{name: Price(input, output, cached_input=...)}})."
)
_SETTINGS_OF_MODELS = ("cache", "rate_limiter", "disable_streaming", "custom_get_token_ids")


class _Routed(NamedTuple):
    """An input whose model is already chosen, as `batch` passes it on to `invoke`."""

    input: Any
    decision: RoutingDecision
    models: dict[str, Model]


class _Operation(NamedTuple):
    """A method to be called on whichever model is chosen: `bind_tools` or `with_structured_output`."""

    method: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def asks_for(self) -> str:
        """The capability it needs."""
        return "tool_calling" if self.method == "bind_tools" else "structured_output"


class _Terms(NamedTuple):
    """The terms of one call: lambda, the names that may take it, why others may not, and what each costs besides."""

    cost_weight: float | None
    among: tuple[str, ...]
    excluded: tuple[tuple[str, str], ...]
    surcharges: tuple[tuple[str, float], ...]


def _checked_models(models: object) -> MutableMapping[str, Model]:
    """The very dict that was given, not a copy: what is registered later is seen by every copy of the chat model."""
    if isinstance(models, ModelRegistry):
        return models
    if not isinstance(models, dict):
        msg = f"models should be a dict from names to chat models, or a ModelRegistry, not {type(models).__name__}."
        raise InvalidInputError(msg)
    for name, model in models.items():
        models[name] = checked_model(name, model)
    return models


class ChatUniRouter(BaseChatModel):
    """A chat model that sends each call to the registered model with the least expected error plus weighted cost.

    Put it where a chat model stood: `prompt | ChatUniRouter(router=router, models=models) | parser`. The prompt is
    judged by its last human message. Answers come from the chosen model as they are, with the decision added under
    `response_metadata["unirouter"]` (of a stream: on its first chunk); the run's trace carries it as metadata
    `unirouter_model`, `unirouter_cluster` and so on. If a model fails, the next best one takes the call.

    A call may have its own terms: `config={"configurable": {...}}` with `unirouter_cost_weight`, `unirouter_among`
    (names) or `unirouter_model` (a name), or the keyword `model="<name>"`. Models that cannot take a call at all, by
    their `profile` (no tools, no images, too long an input), are left out of it; the decision holds the reasons.
    `output_version` is each model's own.

    Attributes:
        router: The fitted router, with a profile registered for each of the models.
        models: The chat models by name, in a dict or a `ModelRegistry`; any of them may have arguments bound, or be
            named as `init_chat_model` names it (`"openai:gpt-5-nano"`, needs `langchain`), and is then made at once.
            What is given is kept, not copied.
        cost_weight: lambda for the calls of this chat model; None for the router's.
        judged_by: What a prompt is judged by: its last human message that has text (`"last_human"`), with the system
            message before it, the whole `"conversation"`, or a function from the messages to a text.
        sticky: Which calls stay with the model that gave the last answer, if it still takes part and can take the call:
            those of one loop of tool calls (`"tools"`), or all of a conversation (`"thread"`), whose prompt cache is
            then kept. With `"cache"` a conversation moves between its questions, but only if the expected gain is worth
            more than the lost cache: to each model's cost is added what it costs it to read the conversation so far,
            which the model that has it in its prompt cache reads at the cached price. That needs prices, and profiles
            with costs in USD per 1,000 calls. The answers in the messages say which model gave them.
        fallback: Whether, after an error that another model could survive (rate limit, timeout, lost connection, server
            error, context overflow), the next best model of the same decision takes the call; of a stream only before
            its first chunk. `"refusals"`: after a refusal as well. The decision then names the model that answered, and
            those that failed among the excluded ones. Other errors, those of a model that was forced or that a loop of
            tool calls or a `"thread"` stays with, and the last one's, are raised as they come. A thread moves on when
            its model rests.
        cooldown: For how many seconds a model rests that failed three times in a row, unless its provider says for how
            long. Then one call tries it.
        default: The name of the model that answers where the prompt cannot be embedded; None to raise the error.
        embedding_timeout: After how many seconds that is so; None for no limit.
        escalate: A scorer that checks answers, see `as_scorer`; the prompt is all it can compare them with. One that
            scores below 0.5 sends the call on to the next model that is expected to err less; both are paid. For
            instance `judge(model)`, `"confidence"`, `"probability"`, or a function of (answer, example). Streams, calls
            of tools and filled-in forms are not checked. A graph that streams what its models say has streamed a
            rejected answer by then. If the better model fails, the answer stands.

    Raises:
        ValidationError: From the constructor (pydantic's, a `ValueError`), if a model has no profile or is no chat
            model, or has no price where one is needed, or a setting is given that only the models can have: `cache`,
            `rate_limiter`, `disable_streaming`, `custom_get_token_ids`.

    Example:
        ```python
        llm = ChatUniRouter(router=router, models={"mini": ChatOpenAI(...), "sonnet": ChatAnthropic(...)})
        chain = prompt | llm | StrOutputParser()
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    router: UniRouter
    models: Annotated[MutableMapping[str, Any], PlainValidator(_checked_models)]
    cost_weight: float | None = None
    judged_by: JudgedBy = "last_human"
    sticky: Literal["tools", "thread", "cache"] = "tools"
    fallback: bool | Literal["refusals"] = True
    cooldown: float = Field(default=30.0, ge=0)
    default: str | None = None
    embedding_timeout: float | None = Field(default=None, gt=0)
    escalate: Annotated[Any, PlainValidator(as_check)] = Field(default=None, repr=False)
    operations: tuple[Any, ...] = Field(default=(), exclude=True, repr=False)
    _prepared: dict[str, tuple[Model, Model]] = PrivateAttr(default_factory=dict)
    _cooldowns: Cooldowns = PrivateAttr()

    @override
    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._cooldowns = Cooldowns(self.cooldown)

    @model_validator(mode="after")
    def _check_profiles(self) -> "ChatUniRouter":
        if not self.models:
            msg = "models is empty; give at least one chat model."
            raise InvalidInputError(msg)
        for setting in _SETTINGS_OF_MODELS:
            if getattr(self, setting):
                msg = f"{setting} has no effect on a ChatUniRouter, which makes no call itself; set it on its models."
                raise InvalidInputError(msg)
        check_cost_weight(self.cost_weight)
        check_profiles(self.router, self.models)
        if self.sticky == "cache":
            self._prices(self.models)
        if self.default is not None and self.default not in self.models:
            msg = f"default should be one of the models, {', '.join(map(repr, self.models))}, but is {self.default!r}."
            raise InvalidInputError(msg)
        return self

    def register(self, name: str, model: Model | str, profile: LLMProfile, *, price: Price | None = None) -> None:
        """Let a new model take part from now on, in every chain that holds this chat model; or replace one.

        Args:
            name: Its name.
            model: The chat model, or its name for `init_chat_model`.
            profile: Its profile under the same name, as `router.profile(...)` makes it.
            price: Its price, for a `ModelRegistry`; that in the profile's metadata, where `profile_model` notes it,
                does as well.

        Raises:
            InvalidInputError: If the profile is of another name or of other clusters, or the model is not a chat model.
        """
        made = checked_model(name, model)
        if not isinstance(profile, LLMProfile) or profile.name != name:
            found = repr(profile) if isinstance(profile, LLMProfile) else type(profile).__name__
            msg = f"{name!r} needs its own profile (router.profile({name!r}, ...) makes it), not {found}."
            raise InvalidInputError(msg)
        if price is not None and not isinstance(self.models, ModelRegistry):
            msg = f"A dict of models has no place for the price of {name!r}; give models=ModelRegistry(...)."
            raise InvalidInputError(msg)
        if price is not None and not isinstance(price, Price):
            msg = f"The price of {name!r} should be a Price(input, output), not {type(price).__name__}."
            raise InvalidInputError(msg)
        if self.sticky == "cache" and price is None and _price_of(name, self.models, {name: profile}) is None:
            raise InvalidInputError(_NO_PRICE.format(name))
        if price is None and self.models.get(name) is not made:  # the price of the model before it is not its own
            price = _noted_price(profile)
        self.router.register(profile)  # first: it takes part only once its model is there as well
        if isinstance(self.models, ModelRegistry):
            self.models.register(name, made, price=price)
        else:
            self.models[name] = made

    def unregister(self, name: str) -> None:
        """Take a model out of every decision from now on. Calls that already chose it are finished by it.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        self.router.unregister(name)
        with suppress(KeyError):
            del self.models[name]

    @override
    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        given = ensure_config(config)
        (routed,), kwargs = self._route([input], [given], kwargs)
        doubted: AIMessage | None = None
        while True:
            try:
                model, item, traced = self._call(routed, given)
                answer = self._noted(model.invoke(item, traced, **_with(stop, kwargs)), routed)
            except Exception as error:
                following = self._after_failure(error, routed)
                if following is None and doubted is not None:
                    return doubted
                if following is None:
                    raise
            else:
                following = self._after_refusal(answer, routed)
                if following is None and self._may_escalate(answer, routed):
                    following = None if run_in_background(self._passes(answer, routed)) else self._after_check(routed)
                if following is None:
                    return answer
                doubted = answer
            routed = following

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        given = ensure_config(config)
        (routed,), kwargs = await self._aroute([input], [given], kwargs)
        doubted: AIMessage | None = None
        while True:
            try:
                model, item, traced = self._call(routed, given)
                answer = self._noted(await model.ainvoke(item, traced, **_with(stop, kwargs)), routed)
            except Exception as error:
                following = self._after_failure(error, routed)
                if following is None and doubted is not None:
                    return doubted
                if following is None:
                    raise
            else:
                following = self._after_refusal(answer, routed)
                if following is None and self._may_escalate(answer, routed):
                    following = None if await self._passes(answer, routed) else self._after_check(routed)
                if following is None:
                    return answer
                doubted = answer
            routed = following

    @override
    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        given = ensure_config(config)
        (routed,), kwargs = self._route([input], [given], kwargs)
        begun = False
        while True:
            try:
                model, item, traced = self._call(routed, given)
                for chunk in model.stream(item, traced, **_with(stop, kwargs)):
                    noted = chunk if begun else self._noted(chunk, routed)
                    begun = True
                    yield cast("AIMessageChunk", noted)
            except Exception as error:
                following = None if begun else self._after_failure(error, routed)
                if following is None:
                    raise
                routed = following
            else:
                return

    @override
    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        given = ensure_config(config)
        (routed,), kwargs = await self._aroute([input], [given], kwargs)
        begun = False
        while True:
            model, item, traced = self._call(routed, given)
            chunks = model.astream(item, traced, **_with(stop, kwargs))
            try:
                async for chunk in chunks:
                    noted = chunk if begun else self._noted(chunk, routed)
                    begun = True
                    yield cast("AIMessageChunk", noted)
            except Exception as error:
                following = None if begun else self._after_failure(error, routed)
                if following is None:
                    raise
                routed = following
            else:
                return
            finally:  # closed early, this stream closes the model's at once
                if isinstance(chunks, AsyncGenerator):
                    await chunks.aclose()

    @override
    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Events of the chosen model's run; with `version="v3"` a stream of its content blocks."""
        if kwargs.get("version") != "v3":
            return super().stream_events(input, config, **kwargs)
        given = ensure_config(config)
        (routed,), kwargs = self._route([input], [given], kwargs)
        model, item, traced = self._prepared_call(routed, given)
        return model.stream_events(item, traced, **kwargs)

    @override
    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Events of the chosen model's run; with `version="v3"`, awaited, a stream of its content blocks."""
        if kwargs.get("version") != "v3":
            return super().astream_events(input, config, **kwargs)

        async def chosen() -> Any:
            given = ensure_config(config)
            (routed,), left = await self._aroute([input], [given], kwargs)
            model, item, traced = self._prepared_call(routed, given)
            return await model.astream_events(item, traced, **left)

        return chosen()

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
        routed: list[Any] = inputs
        try:
            routed, kwargs = self._route(inputs, get_config_list(config, len(inputs)), kwargs)
        except Exception:
            if not return_exceptions:
                raise  # otherwise each is routed alone, and its error returned in its place
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
        routed: list[Any] = inputs
        try:
            routed, kwargs = await self._aroute(inputs, get_config_list(config, len(inputs)), kwargs)
        except Exception:
            if not return_exceptions:
                raise
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
        """Bind tools to whichever model is chosen; models that take no tools are left out.

        Args:
            tools: Tools, functions, pydantic classes or schemas, as every chat model takes them.
            tool_choice: Which tool has to be called, as the models take it.
            kwargs: What else the models' `bind_tools` takes.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return RunnableBinding(bound=self._with_operation("bind_tools", tools, **kwargs), kwargs={}, config={})

    @override
    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Have whichever model is chosen answer in this form; models that cannot are left out.

        Args:
            schema: A pydantic class, a TypedDict or a JSON schema.
            include_raw: Whether the answer comes with the raw message and the parsing error.
            kwargs: What else the models' `with_structured_output` takes, such as `method` and `strict`.
        """
        copy = self._with_operation("with_structured_output", schema, include_raw=include_raw, **kwargs)
        return RunnableBinding(bound=copy, kwargs={}, config={})

    def decide(self) -> Runnable[LanguageModelInput, RoutingDecision]:
        """A Runnable that only decides: the same decisions, and no model is called. For branches and graphs.

        Into the state of a graph put `decision.as_dict()`, which is plain JSON.

        Example:
            ```python
            chain = RunnablePassthrough.assign(route=itemgetter("question") | llm.decide())
            ```
        """

        def now(prompt: Any, config: RunnableConfig) -> RoutingDecision:
            return self._route([prompt], [config], {})[0][0].decision

        async def awaited(prompt: Any, config: RunnableConfig) -> RoutingDecision:
            return (await self._aroute([prompt], [config], {}))[0][0].decision

        return RunnableLambda(now, awaited, name="unirouter")

    @override
    def get_num_tokens(self, text: str) -> int:
        """As the first of the models counts them."""
        return self._reference().get_num_tokens(text)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """As the first of the models counts them."""
        return self._reference().get_token_ids(text)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """As the first of the models counts them."""
        return self._reference().get_num_tokens_from_messages(messages, tools)

    @override
    def _resolve_model_profile(self) -> Any:
        return joint_profile(self.models.values())

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=stop, **kwargs)
        return {**params, "ls_provider": "unirouter", "ls_model_name": kwargs.get("model") or "unirouter"}

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

    def _route(
        self, inputs: Sequence[Any], configs: Sequence[RunnableConfig], kwargs: dict[str, Any]
    ) -> tuple[list[_Routed], dict[str, Any]]:
        """Each input with its model, and what is left of the keywords."""
        if _are_routed(inputs):
            return list(inputs), kwargs
        messages = [self._convert_input(item).to_messages() for item in inputs]
        models = snapshot(self.models)
        pool = self.router.registered(models)  # embedded and decided by one version of the router
        terms, left = self._terms(messages, configs, kwargs, models)
        texts = [judged_text(each, self.judged_by) for each in messages]
        try:
            vectors = within(self.embedding_timeout, lambda: pool.clusters.embed(texts))
        except Exception as error:
            if self.default is None:
                raise
            vectors, terms = self._blind(terms, error, pool)
        return self._dispatched(inputs, self._decided(vectors, terms, pool), models), left

    async def _aroute(
        self, inputs: Sequence[Any], configs: Sequence[RunnableConfig], kwargs: dict[str, Any]
    ) -> tuple[list[_Routed], dict[str, Any]]:
        if _are_routed(inputs):
            return list(inputs), kwargs
        messages = [self._convert_input(item).to_messages() for item in inputs]
        models = snapshot(self.models)
        pool = self.router.registered(models)  # embedded and decided by one version of the router
        terms, left = self._terms(messages, configs, kwargs, models)
        texts = [judged_text(each, self.judged_by) for each in messages]
        try:
            vectors = await asyncio.wait_for(pool.clusters.aembed(texts), self.embedding_timeout)
        except Exception as error:
            if self.default is None:
                raise
            vectors, terms = self._blind(terms, error, pool)
        return self._dispatched(inputs, self._decided(vectors, terms, pool), models), left

    def _terms(
        self,
        messages: Sequence[list[BaseMessage]],
        configs: Sequence[RunnableConfig],
        kwargs: dict[str, Any],
        models: dict[str, Model],
    ) -> tuple[list[_Terms], dict[str, Any]]:
        left = {key: value for key, value in kwargs.items() if key != "model"}
        forced = kwargs.get("model")
        asked_for = {operation.asks_for for operation in self.operations}
        asked_for |= {"tool_calling"} if kwargs.get("tools") else set()
        return [
            self._terms_of(each, config.get("configurable") or {}, forced, asked_for, models)
            for each, config in zip(messages, configs, strict=True)
        ], left

    def _terms_of(
        self,
        messages: list[BaseMessage],
        configurable: Mapping[str, Any],
        forced: str | None,
        asked_for: set[str],
        models: dict[str, Model],
    ) -> _Terms:
        needs = needs_of(messages, asked_for)
        weight = configurable.get("unirouter_cost_weight", self.cost_weight)
        weight = self.router.cost_weight if weight is None else weight
        among = configurable.get("unirouter_among")
        if among is not None:
            among = list(among) if isinstance(among, Iterable) and not isinstance(among, str) else []
            if not (among and all(isinstance(name, str) for name in among)):
                msg = "unirouter_among should be a list of one or more names of models."
                raise InvalidInputError(msg)
        forced = forced or configurable.get("unirouter_model")
        names = [forced] if forced is not None else list(models if among is None else among)
        unknown = [name for name in names if name not in models]
        if unknown:
            msg = f"There is no model {unknown[0]!r}; the models are {', '.join(map(repr, models))}."
            raise UnknownModelError(msg)
        surcharges: dict[str, float] = {}
        under_way = is_under_way(messages)
        if forced is None and (self.sticky == "thread" or under_way):
            before = last_model(messages)
            rests = not under_way and before is not None and self._cooldowns.resting([before])
            if not rests and before is not None and before in names and why_not(models[before], needs) is None:
                names = [before]
        elif forced is None and self.sticky == "cache":
            surcharges = history_costs(messages, self._prices(names))
        names_of_able, reasons = able({name: models[name] for name in names}, needs)
        rested, resting = self._cooldowns.rested(names_of_able)
        reasons |= resting
        return _Terms(weight, tuple(rested), tuple(reasons.items()), tuple(surcharges.items()))

    def _prices(self, names: Iterable[str]) -> dict[str, Price]:
        """The prices of these models, from the registry or from what `profile_model` has noted."""
        prices = {}
        for name in names:
            price = _price_of(name, self.models, self.router.profiles)
            if price is not None:
                prices[name] = price
            elif name in self.models and name in self.router.profiles:  # otherwise it has been removed meanwhile
                raise InvalidInputError(_NO_PRICE.format(name))
        return prices

    def _decided(self, vectors: Vectors, terms: Sequence[_Terms], pool: Pool) -> list[RoutingDecision]:
        """One decision for each input; inputs on the same terms are routed together."""
        rows: dict[_Terms, list[int]] = {}
        for row, one in enumerate(terms):
            rows.setdefault(one, []).append(row)
        decisions: dict[int, RoutingDecision] = {}
        for one, members in rows.items():
            among = pool.registered(one.among)
            if not among.given:
                raise pool.unknown(one.among)
            if one.surcharges:
                among = among.surcharged(dict(one.surcharges))
            found = self.router.route_many(vectors=vectors[members], cost_weight=one.cost_weight, among=among)
            if one.excluded:
                found = [replace(decision, excluded=dict(one.excluded)) for decision in found]
            decisions.update(zip(members, found, strict=True))
        return [decisions[row] for row in range(len(terms))]

    def _dispatched(
        self, inputs: Sequence[Any], decisions: Sequence[RoutingDecision], models: dict[str, Model]
    ) -> list[_Routed]:
        return [_Routed(item, decision, models) for item, decision in zip(inputs, decisions, strict=True)]

    def _blind(self, terms: Sequence[_Terms], error: Exception, pool: Pool) -> tuple[Vectors, list[_Terms]]:
        """What stands for the vectors of prompts that could not be embedded, and terms by which the default answers."""
        blind = []
        for one in terms:
            among, reasons = without_embedding(self.default, one.among, error)
            blind.append(one._replace(among=tuple(among), excluded=(*one.excluded, *reasons.items())))
        return np.zeros((len(terms), pool.clusters.dimension), np.float32), blind

    def _after_failure(self, error: Exception, routed: _Routed) -> _Routed | None:
        """The call as the next best model of the same decision takes it; None if none could do better."""
        decision = next_best(self.router, routed.decision, error, self._cooldowns, self.fallback)
        return None if decision is None else routed._replace(decision=decision)

    def _after_refusal(self, answer: M, routed: _Routed) -> _Routed | None:
        """The call as the next best model of the same decision takes it, if that is asked for after a refusal."""
        if self.fallback != "refusals" or not (isinstance(answer, AIMessage) and is_refusal(answer)):
            return None
        decision = after_refusal(self.router, routed.decision)
        return None if decision is None else routed._replace(decision=decision)

    def _may_escalate(self, answer: object, routed: _Routed) -> bool:
        """Whether an answer is checked: only if there is a text to check, and somebody to do better."""
        is_text = isinstance(answer, AIMessage) and not answer.tool_calls
        return self.escalate is not None and is_text and bool(routed.decision.better)

    async def _passes(self, answer: AIMessage, routed: _Routed) -> bool:
        """Whether an answer passes the check; one that cannot be graded does."""
        messages = self._convert_input(routed.input).to_messages()
        # LangGraph streams what models say inside a node; a judge's verdict is no part of the answer.
        unseen = var_child_runnable_config.set(merge_configs(ensure_config(), RunnableConfig(tags=["nostream"])))
        try:
            return await passes(self.escalate, answer, judged_text(messages, self.judged_by), routed.decision)
        finally:
            var_child_runnable_config.reset(unseen)

    def _after_check(self, routed: _Routed) -> _Routed | None:
        """The call as the next better model takes it."""
        decision = after_check(self.router, routed.decision)
        return None if decision is None else routed._replace(decision=decision)

    def _prepare(self, name: str, model: Model) -> Model:
        """The model with tools or a schema bound, made when it is first chosen and again if it was replaced."""
        if not self.operations:
            return model
        known = self._prepared.get(name)
        if known is None or known[0] is not model:
            prepared: Any = model
            for operation in self.operations:
                prepared = getattr(prepared, operation.method)(*operation.arguments, **operation.keywords)
            self._prepared[name] = known = (model, prepared)
        return known[1]

    def _with_operation(self, method: str, /, *arguments: Any, **keywords: Any) -> "ChatUniRouter":
        copy = self.model_copy(update={"operations": (*self.operations, _Operation(method, arguments, keywords))})
        copy._prepared = {}  # noqa: SLF001  # the copy's own: what is bound differs
        return copy

    def _reference(self) -> BaseChatModel:
        for model in self.models.values():
            return cast("BaseChatModel", model)
        msg = "There is no model left to count tokens; register one."
        raise NoModelError(msg)

    def _call(self, routed: _Routed, given: RunnableConfig) -> tuple[Model, Any, RunnableConfig]:
        """The chosen model, the input, and the caller's config with the constructor's and, for traces, the decision."""
        self._cooldowns.begun(routed.decision.model)
        return self._prepared_call(routed, given)

    def _prepared_call(self, routed: _Routed, given: RunnableConfig) -> tuple[Model, Any, RunnableConfig]:
        """`_call`, of a call whose end is not seen here."""
        name = routed.decision.model
        decision = {f"unirouter_{key}": value for key, value in routed.decision.as_dict().items()}
        config = RunnableConfig(
            **{
                **given,
                "configurable": _without_terms(given.get("configurable") or {}),
                "tags": [*(self.tags or []), "unirouter", *(given.get("tags") or [])],
                "metadata": {**(self.metadata or {}), **(given.get("metadata") or {}), **decision},
            }
        )
        if self.callbacks is not None:
            own = RunnableConfig(callbacks=_not_yet_in(given.get("callbacks"), self.callbacks))
            config = merge_configs(own, config)
        return self._prepare(name, routed.models[name]), routed.input, config

    def _noted(self, answer: M, routed: _Routed) -> M:
        """A copy of the answer that says which model gave it and why; the original may be a cache's.

        Of routers inside routers, the innermost decision is the one that names the model. What a structured output is
        parsed to has no place for a note.
        """
        self._cooldowns.succeeded(routed.decision.model)
        if any(operation.method == "with_structured_output" for operation in self.operations):
            filled: Any = answer
            if isinstance(filled, dict) and isinstance(filled.get("raw"), AIMessage):  # include_raw
                filled = {**filled, "raw": self._with_note(filled["raw"], routed)}
            return cast("M", filled)
        if not isinstance(answer, AIMessage):
            msg = (
                f"The model {routed.decision.model!r} answered with {type(answer).__name__}, not with an AIMessage. "
                "Register the chat model itself, without a parser behind it."
            )
            raise InvalidInputError(msg)
        return self._with_note(answer, routed)

    @staticmethod
    def _with_note(answer: M, routed: _Routed) -> M:
        metadata = {"unirouter": routed.decision.as_dict(), **answer.response_metadata}
        return answer.model_copy(update={"response_metadata": metadata})


def _price_of(name: str, models: Mapping[str, Any], profiles: Mapping[str, LLMProfile]) -> Price | None:
    """The price of a model in a registry, or the one that `profile_model` has noted; None if neither is there."""
    price = models.price(name) if isinstance(models, ModelRegistry) else None
    return _noted_price(profiles[name]) if price is None and name in profiles else price


def _noted_price(profile: LLMProfile) -> Price | None:
    """The price that `profile_model` has noted in a profile."""
    noted = profile.metadata.get("price")
    if isinstance(noted, dict) and {"input", "output"} <= noted.keys() <= set(Price.__match_args__):
        return Price(**noted)
    return None


def _without_terms(configurable: Mapping[str, Any]) -> dict[str, Any]:
    """Without the terms of this call, which would hold for a router inside this one, too."""
    return {key: value for key, value in configurable.items() if key not in {"unirouter_model", "unirouter_among"}}


def _not_yet_in(given: Callbacks, own: Callbacks) -> Callbacks:
    """The constructor's callbacks without those that the call brings along: a handler is called once per event."""
    if not isinstance(own, list):
        return own
    handlers = given if isinstance(given, list) else getattr(given, "handlers", [])
    return [handler for handler in own if handler not in handlers]


def _are_routed(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and all(isinstance(item, _Routed) for item in inputs)


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
