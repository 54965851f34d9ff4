"""`ChatUniRouter`: a chat model that hands every call to one of several chat models.

It *delegates* the public methods and opens no model run of its own. Calling a chat model inside `_generate` would count
tokens twice, stream them twice and lose bound tools; delegating, every call is exactly one run, the chosen model's.
"""

import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from langchain_core.callbacks import CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_model_stream import AsyncChatModelStream
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ensure_config, get_config_list, merge_configs
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, model_validator
from typing_extensions import override

from unirouter_integrations._checks import check_known
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import LLMProfile, RoutingDecision
from unirouter_integrations.errors import InvalidInputError, NoModelError
from unirouter_integrations.grading import Price
from unirouter_integrations.langchain._capabilities import (
    bare_model,
    capabilities_of,
    joint_profile,
    server_tools_in,
)
from unirouter_integrations.langchain._events import (
    Event,
    aevents_stream,
    describe_event,
    events_stream,
    noted_event,
    usage_in_event,
)
from unirouter_integrations.langchain._messages import (
    JudgedBy,
    describe,
    is_empty,
    is_refusal,
    usage_in,
)
from unirouter_integrations.langchain._models import Model, as_chat_model, changed, traced
from unirouter_integrations.langchain._prompt_cache import NO_PRICE, prices_of
from unirouter_integrations.langchain._requests import Candidates, Sticky, history_of, note_of, request_of, with_note
from unirouter_integrations.langchain._shown import Shown
from unirouter_integrations.langchain._tools import BoundTools, as_bound, tool_arguments
from unirouter_integrations.serving._health import Health
from unirouter_integrations.serving._options import PREFIX, CallOptions
from unirouter_integrations.serving._registry import ModelRegistry, price_of_model
from unirouter_integrations.serving._serving import (
    Fallback,
    OnCut,
    Serving,
    as_check,
    health_of,
    settings_of,
)
from unirouter_integrations.serving._steps import CONTINUE, CallRequest, Framework, RoutedCall

T = TypeVar("T")
M = TypeVar("M", bound=AIMessage)

_log = logging.getLogger("unirouter_integrations")

_SETTINGS_OF_MODELS = ("cache", "rate_limiter", "disable_streaming", "custom_get_token_ids")
# LangChain's standard model arguments, which its standard tests pass to every chat model.
_STANDARD_ARGUMENTS = frozenset(
    {
        "api_key",
        "base_url",
        "max_retries",
        "max_tokens",
        "model",
        "stop",
        "stop_sequences",
        "streaming",
        "temperature",
    }
)


def checking() -> AbstractContextManager[None]:
    """LangGraph streams what models say inside a node; a judge's verdict is no part of the answer."""
    return traced(RunnableConfig(tags=["nostream"]))


def _text_answer(answer: object) -> AIMessage | None:
    return answer if isinstance(answer, AIMessage) and not answer.tool_calls else None


_LANGCHAIN = Framework(
    as_model=as_chat_model,
    capabilities_of=capabilities_of,
    is_refusal=is_refusal,
    is_empty=is_empty,
    text_answer=_text_answer,
    usage_of=usage_in,
    describe=describe,
    checking=checking,
)
_EVENTS = _LANGCHAIN._replace(describe=describe_event, usage_of=usage_in_event)


class _RoutedInput(NamedTuple):
    """An input whose model is already chosen, as `batch` passes it on to `invoke`."""

    input: Any
    messages: list[BaseMessage]
    routed: RoutedCall


class _Operation(NamedTuple):
    """A method to be called on whichever model is chosen: `bind_tools` or `with_structured_output`."""

    method: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    asks_for: tuple[str, ...]
    """The capabilities that it needs."""

    def on(self, model: Model) -> Model:
        """What it makes of a model."""
        keywords = tool_arguments(self.keywords, bare_model(model)) if self.method == "bind_tools" else self.keywords
        made: Model = changed(model, self.method, *self.arguments, **keywords)
        return made


class ChatUniRouter(BaseChatModel):
    """A chat model that sends each call to the registered model with the least expected error plus weighted cost.

    Put it where a chat model stood: `prompt | ChatUniRouter(router=router, models=models) | parser`. A conversation is
    judged by what its user asks now. Answers come from the chosen model unchanged, with the decision added under
    `response_metadata["unirouter"]` (of a stream: on its first chunk); in a loop of tool calls it is that of the first
    one, for as long as the same model goes on. The run's trace carries it as metadata `unirouter_model`,
    `unirouter_cluster` and so on. If a model fails, the next best one takes the call; its run has an id of its own, and
    the metadata `unirouter_run_id` if the call came with a `run_id`.

    A call may have its own options: `config={"configurable": {...}}` with `unirouter_cost_weight`, `unirouter_among`
    (names), `unirouter_model` (a name), `unirouter_max_error` or `unirouter_max_cost`, or the keyword `model="<name>"`.
    Models that cannot take a call, by their `profile` or what a `ModelRegistry` declares (no tools, no images, too long
    an input), are left out of it; the decision holds the reasons. Providers do not understand all of each other's
    messages: a model is sent other models' answers as it takes them. `output_version` is each model's own. The standard
    model arguments (`temperature`, `max_tokens` ...) are accepted and have no effect, as the models have their own.

    Attributes:
        router: The fitted router, with a profile registered for each of the models.
        models: The chat models by name, in a dict or a `ModelRegistry`. Any of them may have arguments bound, or be
            named for `init_chat_model` (`"openai:gpt-5-nano"`, needs `langchain`); it is then made at once. The dict or
            registry itself is kept, not copied.
        cost_weight: lambda for the calls of this chat model; None for the router's.
        judged_by: What a conversation is judged by: what the user asks now (`"recent_human"`), which is the last human
            message that has text, or, where it is too short to have a subject of its own, the ones before it as well;
            the last one alone (`"last_human"`), with the system message before it (`"system_and_last_human"`), the
            whole `"conversation"`, or a function from the messages to a text.
        sticky: Which calls stay with the model that gave the last answer, if it still takes part and can take the call:
            those of one loop of tool calls (`"tools"`), or all of a conversation (`"thread"`), whose prompt cache is
            then kept. With `"cache"` a conversation moves between its questions, but only if the expected gain is worth
            more than the lost cache: each model's cost includes reading the conversation so far, which the model that
            has it in its prompt cache reads at the cached price. That needs prices, and profiles with costs in USD per
            1,000 calls. The answers in the messages say which model gave them.
        allow_overrides: Whether a call may have options in its `configurable`, and the answers in its messages say
            which model gave them. Turn it off where clients write either: then only you choose among the models, and a
            loop of tool calls stays with its model because its question stays the same.
        candidates: A function from the messages and the config of a call to the names of the models that may take it,
            or to None for all: for data that only your own models may see, for tenants and regions. Neither the options
            of a call nor a fallback gets past it.
        fallback: Whether the next model of the same decision takes the call after an error that is not the caller's own
            (a wrong request, which every model would refuse) or an empty answer. `"refusals"`: after a refusal as well.
            Or a function of the error that says so. The decision then names the model that answered, and those that
            failed among the excluded ones. Once somebody has seen text of an answer, in a stream or because a graph
            streams what its models say, no other model begins again: the error has what was seen as its
            `partial_text`. Errors of a forced model and the last one's are raised unchanged.
        cooldown: How many seconds a model cools down at first, after more than half of its recent calls failed, unless
            its provider says for how long. It is then asked last, except for one call that probes it.
        default: The name of the model that answers where the prompt cannot be embedded; None to raise the error.
        embedding_timeout: After how many seconds that is so; None for no limit.
        timeout: How many seconds one model may take to answer, and between two chunks; None for no limit.
        first_token_timeout: How many seconds the first content of a stream may take; None for no limit.
        deadline: How many seconds the whole call may take, all models together; None for no limit.
        max_attempts: How many models may be asked for one call; None for all.
        max_cost: What the whole call may be expected to cost, in the unit of the profiles; None for no limit.
        hedge: Whether a second model is asked as well when an answer takes longer than 95% of its model's answers; the
            first answer counts, the other call is cancelled, and both are paid. At most a tenth of the calls. Calls
            with tools are not hedged, nor those whose tokens somebody sees before they are complete.
        on_cut: What becomes of a stream that breaks after its first text. `"raise"`: the error is raised, with the text
            so far as its `partial_text`. `"continue"`: the next model is asked to continue the text. `"restart"`: it
            starts again. Its first chunk has `unirouter_cuts` in its `response_metadata`. No provider guarantees that a
            continued text fits. Forms, `stream_events(version="v3")` and calls of tools always raise.
        escalate: A scorer that checks answers, see `as_scorer`; it can only compare them with the prompt. An answer
            that scores below 0.5 sends the call on to the next model that is expected to err less; both are paid. For
            instance `judge(model)`, `"confidence"`, `"probability"`, or a function of (answer, example). Streams, tool
            calls and filled-in forms are not checked. A graph that streams the models' output has streamed a rejected
            answer by then. If the better model fails, the answer stands.

    Raises:
        ValidationError: From the constructor (pydantic's, a `ValueError`), if a model has no profile or is no chat
            model, or an argument is unknown or out of range.

    Example:
        ```python
        llm = ChatUniRouter(router=router, models={"mini": ChatOpenAI(...), "sonnet": ChatAnthropic(...)})
        chain = prompt | llm | StrOutputParser()
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    router: UniRouter
    models: Annotated[MutableMapping[str, Any], PlainValidator(lambda models: models)]  # the very dict, not a copy
    cost_weight: float | None = None
    judged_by: JudgedBy = "recent_human"
    sticky: Sticky = "tools"
    allow_overrides: bool = True
    candidates: Candidates | None = None
    fallback: Fallback = True
    cooldown: float = 5.0
    default: str | None = None
    embedding_timeout: float | None = 10.0
    timeout: float | None = 300.0
    first_token_timeout: float | None = 120.0
    deadline: float | None = None
    max_attempts: int | None = None
    max_cost: float | None = None
    hedge: bool = False
    on_cut: OnCut = "raise"
    escalate: Annotated[Any, PlainValidator(as_check)] = Field(default=None, repr=False)
    operations: tuple[Any, ...] = Field(default=(), exclude=True, repr=False)
    _prepared: dict[str, tuple[Model, Model]] = PrivateAttr(default_factory=dict)
    _health: Health = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _check_arguments(cls, given: Any) -> Any:
        """A misspelt argument is an error, not ignored as LangChain's base class would."""
        if isinstance(given, dict):
            check_known(given.keys() - _STANDARD_ARGUMENTS, cls.model_fields, "ChatUniRouter")
            if useless := sorted(given.keys() & _STANDARD_ARGUMENTS):
                _log.info("A ChatUniRouter makes no call itself: %s has no effect; set it on its models.", useless)
        return given

    @model_validator(mode="after")
    def _check(self) -> "ChatUniRouter":
        for setting in _SETTINGS_OF_MODELS:
            if getattr(self, setting):
                msg = f"{setting} has no effect on a ChatUniRouter, which makes no call itself; set it on its models."
                raise InvalidInputError(msg)
        self._health = health_of(self.models)
        self._serving.validate()
        if self.sticky == "cache":
            prices_of(self.models, self._serving)
        return self

    @property
    def _serving(self) -> Serving:
        """The rules of its calls, with its settings as they are now."""
        return Serving(self.router, self.models, _LANGCHAIN, self._health, **settings_of(self))

    def register(self, name: str, model: Model | str, profile: LLMProfile, *, price: Price | None = None) -> None:
        """Let a new model take part from now on, in every chain that holds this chat model; or replace one.

        Args:
            name: Its name.
            model: The chat model, or its name for `init_chat_model`.
            profile: Its profile under the same name, as `router.profile(...)` makes it.
            price: Its price, for a `ModelRegistry`; by default the price in the profile's metadata, where
                `profile_model` notes it.

        Raises:
            InvalidInputError: If the profile is of another name or of other clusters, or the model is not a chat model.
        """
        if self.sticky == "cache" and price is None and price_of_model(name, self.models, {name: profile}) is None:
            raise InvalidInputError(NO_PRICE.format(name))
        self._serving.register(name, model, profile, price)

    def unregister(self, name: str) -> None:
        """Take a model out of every decision from now on. Calls that already chose it are finished by it.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        self._serving.unregister(name)

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
        (item,), kwargs = self._route([input], [given], kwargs)
        shown = Shown(given)

        def ask(routed: RoutedCall) -> AIMessage:
            model, traced_config = self._prepared_call(routed, given, shown)
            answer = model.invoke(self._given(item, routed), traced_config, **_with(stop, kwargs))
            shown.check_end(answer, routed.decision.model)
            return self._noted(answer, routed)

        return self._serving.call(item.routed._replace(seen=shown.text), ask)[1]

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
        (item,), kwargs = await self._aroute([input], [given], kwargs)
        shown = Shown(given)

        async def ask(routed: RoutedCall) -> AIMessage:
            model, traced_config = self._prepared_call(routed, given, shown)
            answer = await model.ainvoke(self._given(item, routed), traced_config, **_with(stop, kwargs))
            shown.check_end(answer, routed.decision.model)
            return self._noted(answer, routed)

        return (await self._serving.acall(item.routed._replace(seen=shown.text), ask))[1]

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
        (item,), kwargs = self._route([input], [given], kwargs)

        def chunks(routed: RoutedCall) -> Iterator[AIMessageChunk]:
            model, traced_config = self._prepared_call(routed, given)
            begun = False
            for chunk in model.stream(self._given(item, routed), traced_config, **_with(stop, kwargs)):
                yield cast("AIMessageChunk", chunk if begun else self._noted(chunk, routed))
                begun = True

        yield from self._serving.stream(item.routed, chunks)[1]

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
        (item,), kwargs = await self._aroute([input], [given], kwargs)

        async def chunks(routed: RoutedCall) -> AsyncGenerator[AIMessageChunk, None]:
            model, traced_config = self._prepared_call(routed, given)
            given_input = self._given(item, routed)
            begun, parts = False, model.astream(given_input, traced_config, **_with(stop, kwargs))
            try:
                async for chunk in parts:
                    yield cast("AIMessageChunk", chunk if begun else self._noted(chunk, routed))
                    begun = True
            finally:  # closed early, this stream closes the model's at once
                if isinstance(parts, AsyncGenerator):
                    await parts.aclose()

        async with aclosing(_astreamed(self._serving, item.routed, chunks)) as stream:
            async for chunk in stream:
                yield chunk

    @override
    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """With `version="v3"`: a stream of content blocks. Another model takes over as in `stream`."""
        if kwargs.get("version") != "v3":
            return super().stream_events(input, config, **kwargs)
        serving, given = self._serving_of_events(), ensure_config(config)
        (item,), kwargs = self._route([input], [given], kwargs)

        def events(routed: RoutedCall) -> Iterator[Event]:
            model, traced_config = self._prepared_call(routed, given)
            for event in model.stream_events(self._given(item, routed), traced_config, **kwargs):
                yield noted_event(event, note_of(routed))

        def opened_when_read() -> Iterator[Event]:
            yield from serving.stream(item.routed, events)[1]

        return events_stream(opened_when_read())

    @override
    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Async version of `stream_events`; with other versions the events of the chosen model's run."""
        if kwargs.get("version") != "v3":
            return super().astream_events(input, config, **kwargs)
        return self._astream_blocks(input, ensure_config(config), kwargs)

    async def _astream_blocks(self, prompt: Any, given: RunnableConfig, kwargs: dict[str, Any]) -> AsyncChatModelStream:
        serving = self._serving_of_events()
        (item,), kwargs = await self._aroute([prompt], [given], kwargs)

        async def events(routed: RoutedCall) -> AsyncGenerator[Event, None]:
            model, traced_config = self._prepared_call(routed, given)
            async with await model.astream_events(self._given(item, routed), traced_config, **kwargs) as stream:
                async for event in stream:
                    yield noted_event(event, note_of(routed))

        return aevents_stream(_astreamed(serving, item.routed, events))

    def _serving_of_events(self) -> Serving:
        if self._fills_form:
            msg = 'stream_events(version="v3") streams messages, and a form is none; use stream, or version="v2".'
            raise NotImplementedError(msg)
        return replace(self._serving, framework=_EVENTS, on_cut="raise")  # the blocks of two models do not add up

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
        self,
        tools: Sequence[Any],
        *,
        tool_choice: str | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools to whichever model is chosen; models that take no tools are left out.

        So are models of other providers where a tool is one that a provider runs itself, such as
        `{"type": "web_search"}`. Each provider's client gets the arguments in its own words; those that the client does
        not know, such as `parallel_tool_calls` of Ollama's, are left away.

        Args:
            tools: Tools, functions, pydantic classes or schemas, as every chat model takes them.
            tool_choice: Which tool has to be called, as the models take it; `"any"` and `"required"` are the same.
            parallel_tool_calls: Whether a model may call several tools at once.
            strict: Whether the arguments of a call have to fit the schema.
            kwargs: What else the models' `bind_tools` takes.
        """
        given = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls, "strict": strict}
        keywords = {**kwargs, **{key: value for key, value in given.items() if value is not None}}
        operation = _Operation("bind_tools", (tools,), keywords, ("tool_calling", *server_tools_in(tools)))
        # The agents of LangGraph look for bound tools in the binding, and would bind them again.
        return RunnableBinding(bound=self._with_operation(operation), kwargs={"tools": as_bound(tools)}, config={})

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
        if include_raw:  # not every chat model has it
            kwargs["include_raw"] = True
        operation = _Operation("with_structured_output", (schema,), kwargs, ("structured_output",))
        return RunnableBinding(bound=self._with_operation(operation), kwargs={}, config={})

    def decide(self) -> Runnable[LanguageModelInput, RoutingDecision]:
        """A Runnable that only decides: the same decisions, and no model is called. For branches and graphs.

        Into the state of a graph put `decision.as_dict()`, which is plain JSON.

        Example:
            ```python
            chain = RunnablePassthrough.assign(route=itemgetter("question") | llm.decide())
            ```
        """

        def now(prompt: Any, config: RunnableConfig) -> RoutingDecision:
            return self._route([prompt], [config], {})[0][0].routed.decision

        async def later(prompt: Any, config: RunnableConfig) -> RoutingDecision:
            return (await self._aroute([prompt], [config], {}))[0][0].routed.decision

        return RunnableLambda(now, later, name="unirouter")

    @override
    def get_num_tokens(self, text: str) -> int:
        """Count tokens as the first of the models does."""
        return self._reference().get_num_tokens(text)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """Count tokens as the first of the models does."""
        return self._reference().get_token_ids(text)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Count tokens as the first of the models does."""
        return self._reference().get_num_tokens_from_messages(messages, tools)

    @override
    def _resolve_model_profile(self) -> Any:
        registry = self.models if isinstance(self.models, ModelRegistry) else None
        models = dict(self.models).items()
        return joint_profile((model, registry.capabilities(name) if registry else {}) for name, model in models)

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
    ) -> tuple[list[_RoutedInput], dict[str, Any]]:
        """Choose a model for each input. Returns what is left of the keywords, too."""
        if _are_routed(inputs):
            return list(inputs), kwargs
        serving, messages = self._serving, [self._convert_input(item).to_messages() for item in inputs]
        routed = serving.decide(self._requests(serving, messages, configs, kwargs))
        return list(map(_RoutedInput, inputs, messages, routed)), _without_own(kwargs)

    async def _aroute(
        self, inputs: Sequence[Any], configs: Sequence[RunnableConfig], kwargs: dict[str, Any]
    ) -> tuple[list[_RoutedInput], dict[str, Any]]:
        """Async version of `_route`."""
        if _are_routed(inputs):
            return list(inputs), kwargs
        serving, messages = self._serving, [self._convert_input(item).to_messages() for item in inputs]
        routed = await serving.adecide(self._requests(serving, messages, configs, kwargs))
        return list(map(_RoutedInput, inputs, messages, routed)), _without_own(kwargs)

    def _requests(
        self,
        serving: Serving,
        conversations: Sequence[list[BaseMessage]],
        configs: Sequence[RunnableConfig],
        kwargs: dict[str, Any],
    ) -> list[CallRequest]:
        asked_for = {each for operation in self.operations for each in operation.asks_for}
        if tools := kwargs.get("tools"):
            asked_for |= {"tool_calling", *server_tools_in(tools)}
        forced, requests = kwargs.get("model"), []
        for conversation, config in zip(conversations, configs, strict=True):
            options = CallOptions.from_prefixed(config.get("configurable") or {}, allowed=self.allow_overrides)
            requests.append(
                request_of(
                    conversation,
                    options._replace(among=(forced,)) if forced else options,
                    asked_for,
                    config,
                    serving=serving,
                    judged_by=self.judged_by,
                    sticky=self.sticky,
                    allow_overrides=self.allow_overrides,
                    candidates=self.candidates,
                )
            )
        return requests

    def _prepare(self, name: str, model: Model) -> Model:
        """Bind tools or a schema to a model, when it is first chosen and again if it was replaced."""
        if not self.operations:
            return model
        known = self._prepared.get(name)
        if known is None or known[0] is not model:
            prepared = model
            for operation in self.operations:
                prepared = operation.on(prepared)
            self._prepared[name] = known = (model, prepared)
        return known[1]

    def _with_operation(self, operation: _Operation) -> "ChatUniRouter":
        copy = self.model_copy(update={"operations": (*self.operations, operation)})
        copy._prepared = {}  # noqa: SLF001  # the copy's own: what is bound differs
        return copy

    def _reference(self) -> BaseChatModel:
        for model in self.models.values():
            return cast("BaseChatModel", model)
        msg = "There is no model left to count tokens; register one."
        raise NoModelError(msg)

    def _prepared_call(
        self, routed: RoutedCall, given: RunnableConfig, shown: Shown | None = None
    ) -> tuple[Model, RunnableConfig]:
        """The chosen model, and the caller's config with the constructor's and, for traces, the decision."""
        decision = {f"{PREFIX}{key}": value for key, value in note_of(routed).items()}
        if routed.attempts > 1 and (run_id := given.get("run_id")) is not None:  # which is of the first run
            given = RunnableConfig(**{**given, "run_id": None})
            decision[f"{PREFIX}run_id"] = str(run_id)
        config = RunnableConfig(
            **{
                **given,
                "configurable": _without_options(given.get("configurable") or {}),
                "tags": [*(self.tags or []), "unirouter", *(given.get("tags") or [])],
                "metadata": {**(self.metadata or {}), **(given.get("metadata") or {}), **decision},
            }
        )
        if self.callbacks is not None:
            own = RunnableConfig(callbacks=_not_yet_in(given.get("callbacks"), self.callbacks))
            config = merge_configs(own, config)
        if shown is not None and shown.listens_to(routed.model):
            config = merge_configs(config, RunnableConfig(callbacks=[shown]))
        return self._prepare(routed.decision.model, routed.model), config

    def _given(self, item: _RoutedInput, routed: RoutedCall) -> Any:
        """What a model is given: the input as it takes it, and what there is of the answer if it is to go on."""
        given = history_of(item.messages, routed)
        if routed.text_before:
            return [*given, AIMessage(routed.text_before), HumanMessage(CONTINUE)]
        return item.input if given is item.messages else given

    @property
    def _fills_form(self) -> bool:
        return any(operation.method == "with_structured_output" for operation in self.operations)

    def _noted(self, answer: M, routed: RoutedCall) -> M:
        """The answer with its decision. A parsed form has no place for one."""
        if self._fills_form:
            filled: Any = answer
            if isinstance(filled, dict) and isinstance(filled.get("raw"), AIMessage):  # include_raw
                filled = {**filled, "raw": with_note(filled["raw"], routed)}
            return cast("M", filled)
        if not isinstance(answer, AIMessage):
            msg = (
                f"The model {routed.decision.model!r} answered with {type(answer).__name__}, not with an AIMessage. "
                "Register the chat model itself, without a parser behind it."
            )
            raise InvalidInputError(msg)
        return with_note(answer, routed)


async def _astreamed(
    serving: Serving, routed: RoutedCall, parts: Callable[[RoutedCall], AsyncGenerator[T, None]]
) -> AsyncGenerator[T, None]:
    """What a model streams, or the next one. Closed early, it closes the model's stream at once."""

    async def opened(routed: RoutedCall) -> AsyncGenerator[T, None]:
        return parts(routed)

    _, stream = await serving.astream(routed, opened)
    async with aclosing(stream):
        async for part in stream:
            yield part


def _without_own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a call that are for the model."""
    return {key: value for key, value in kwargs.items() if key != "model" and not isinstance(value, BoundTools)}


def _without_options(configurable: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the names of models, which would hold for a router inside this one, too."""
    return {key: value for key, value in configurable.items() if key not in {f"{PREFIX}model", f"{PREFIX}among"}}


def _not_yet_in(given: Callbacks, own: Callbacks) -> Callbacks:
    """The constructor's callbacks without those that the call has as well: a handler is called once per event."""
    if not isinstance(own, list):
        return own
    handlers = given if isinstance(given, list) else getattr(given, "handlers", [])
    return [handler for handler in own if handler not in handlers]


def _are_routed(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and all(isinstance(item, _RoutedInput) for item in inputs)


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
