"""`UniRouterMiddleware`: the router inside an agent of `langchain.agents.create_agent`.

An agent binds its tools to whichever model the middleware hands it, so each model gets tools and response format in the
form that it understands. That is why agents are routed here, and not by a chat model that hides the others.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from typing_extensions import override

from unirouter_integrations._checks import one_of, shown
from unirouter_integrations._router import UniRouter
from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.grading import ScorerLike
from unirouter_integrations.langchain._capabilities import capabilities_of, needs_of
from unirouter_integrations.langchain._chat_model import checking
from unirouter_integrations.langchain._messages import in_tool_loop, is_empty, is_refusal, last_human_text, message_in
from unirouter_integrations.langchain._models import as_chat_model, traced
from unirouter_integrations.langchain._shown import Shown, is_seen
from unirouter_integrations.serving._options import PREFIX, CallOptions
from unirouter_integrations.serving._serving import Fallback, Serving, as_check, health_of
from unirouter_integrations.serving._steps import CallRequest, Framework, RoutedCall

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ContextT,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        OmitFromSchema,
        ResponseT,
    )
    from langgraph.runtime import Runtime
    from langgraph.types import Command
except ImportError as error:
    msg = "UniRouterMiddleware needs LangChain's agents: pip install 'langchain>=1.3'."
    raise MissingDependencyError(msg) from error

M = TypeVar("M", bound=BaseMessage)

_ROUTE = "unirouter_route"
_PORTABLE_SETTINGS = frozenset({"max_tokens", "stop", "temperature"})  # which every provider's model takes


class UniRouterState(AgentState[Any]):
    """The agent's state with the decision in it, as plain JSON: any checkpointer can keep it."""

    unirouter_route: NotRequired[Annotated[dict[str, Any], OmitFromSchema(input=True, output=False)]]


class UniRouterMiddleware(AgentMiddleware[AgentState[Any], ContextT, ResponseT]):
    """Gives each run of an agent to the registered model with the least expected error plus weighted cost.

    A question is judged by its last human message. The model that takes it keeps it, however many tools it calls; the
    next human message is decided anew. Another model takes over if that one fails, is unregistered, or cannot take a
    call (no tools, no images, too long an input, by its `profile` or what a `ModelRegistry` declares). The decision is
    in the agent's state, and so in its result, as `unirouter_route`. The traces of the model runs, a fallback's too,
    carry it as metadata `unirouter_model`, `unirouter_cluster` and so on.

    A run may have its own options, in its context (attributes or keys) or in `config["configurable"]`:
    `unirouter_cost_weight`, `unirouter_among` (names) or `unirouter_model` (a name, which no other model replaces).

    List it first. What comes after it, such as prompt caching, then sees the chosen model. A router listed after
    `ModelFallbackMiddleware` would choose the failing model again on every attempt.

    Providers do not understand all of each other's messages. Answers of another provider than the chosen model's are
    therefore sent as their text and tool calls alone, without reasoning, item ids and the like; in the state they stay
    as they were. Of `model_settings` made for another provider's model only `temperature`, `max_tokens` and `stop` are
    kept.

    Args:
        router: The fitted router, with a profile registered for each of the models.
        models: The chat models by name, or names for `init_chat_model`; a dict or a `ModelRegistry`. It is kept, not
            copied: a model joins by `models[name] = model` and `router.register(profile)`, while the agent is in use.
        cost_weight: lambda for this agent; None for the router's.
        route_on: When to look for a new human message: `"run"` once at the start of each run; `"call"` before each call
            of a model, for agents to which messages are added on the way; `"thread"` as `"run"`, but the model that
            began a checkpointed conversation keeps it, and so its prompt cache, for as long as it can answer.
        fallback: See `ChatUniRouter`.
        cooldown: See `ChatUniRouter`.
        default: See `ChatUniRouter`.
        embedding_timeout: See `ChatUniRouter`.
        escalate: See `ChatUniRouter`. It checks the answers in which the model calls no tool.
        timeout: See `ChatUniRouter`.
        deadline: See `ChatUniRouter`; of one call of a model and those that take over, not of the run.
        max_attempts: See `ChatUniRouter`.
        max_cost: See `ChatUniRouter`; of one call of a model and those that take over.
        hedge: See `ChatUniRouter`.

    Raises:
        InvalidInputError: If a model has no profile or is no chat model, or an argument is out of range.

    Example:
        ```python
        models = {"mini": "openai:gpt-5-nano", "sonnet": ChatAnthropic(...)}
        router_middleware = UniRouterMiddleware(router, models)
        agent = create_agent("openai:gpt-5-nano", tools, middleware=[router_middleware])
        ```
    """

    state_schema = UniRouterState

    def __init__(
        self,
        router: UniRouter,
        models: MutableMapping[str, Any],
        *,
        cost_weight: float | None = None,
        route_on: Literal["run", "call", "thread"] = "run",
        fallback: Fallback = True,
        cooldown: float = 5.0,
        default: str | None = None,
        embedding_timeout: float | None = 10.0,
        escalate: ScorerLike | None = None,
        timeout: float | None = 300.0,
        deadline: float | None = None,
        max_attempts: int | None = None,
        max_cost: float | None = None,
        hedge: bool = False,
    ) -> None:
        super().__init__()
        one_of(route_on, "route_on", ("run", "call", "thread"))
        self._route_on = route_on
        self._serving = Serving(
            router,
            models,
            _AGENTS,
            health_of(models),
            cost_weight=cost_weight,
            fallback=fallback,
            cooldown=cooldown,
            default=default,
            embedding_timeout=embedding_timeout,
            escalate=as_check(escalate),
            timeout=timeout,
            deadline=deadline,
            max_attempts=max_attempts,
            max_cost=max_cost,
            hedge=hedge,
        )
        self._serving.validate()

    @property
    def router(self) -> UniRouter:
        """The router."""
        return self._serving.router

    @property
    def models(self) -> MutableMapping[str, Any]:
        """The chat models by name: the dict or registry that was given."""
        return self._serving.models

    @override
    def before_agent(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Decide which model takes the run."""
        if self._route_on == "call":
            return None
        (routed,) = self._serving.decide([self._request_of_run(state, runtime)])
        return _update(routed)

    @override
    async def abefore_agent(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Async version of `before_agent`."""
        if self._route_on == "call":
            return None
        (routed,) = await self._serving.adecide([self._request_of_run(state, runtime)])
        return _update(routed)

    @override
    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Have the chosen model answer, after deciding if no earlier decision holds."""
        shown = Shown(ensure_config())

        def ask(routed: RoutedCall) -> ModelResponse[ResponseT]:
            with _traced(routed, shown):
                response = handler(_routed_request(request, routed))
            shown.check_end(response, routed.decision.model)
            return response

        (routed,) = self._serving.decide([self._request_of_call(request)])
        return _extended(*self._serving.call(routed._replace(seen=shown.text), ask))

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Async version of `wrap_model_call`."""
        shown = Shown(ensure_config())

        async def ask(routed: RoutedCall) -> ModelResponse[ResponseT]:
            with _traced(routed, shown):
                response = await handler(_routed_request(request, routed))
            shown.check_end(response, routed.decision.model)
            return response

        (routed,) = await self._serving.adecide([self._request_of_call(request)])
        return _extended(*await self._serving.acall(routed._replace(seen=shown.text), ask))

    def _request_of_run(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> CallRequest:
        """A run is decided before anything is known of its tools and its response format."""
        loop = in_tool_loop(state["messages"])
        route: Any = state.get(_ROUTE)
        kept = route if loop or self._route_on == "thread" else None
        return self._request(state["messages"], runtime, kept, kept if loop else None)  # a thread has other questions

    def _request_of_call(self, request: ModelRequest[ContextT]) -> CallRequest:
        asked_for = ["tool_calling"] if request.tools else []
        asked_for += ["structured_output"] if request.response_format is not None else []
        goes_on = self._route_on != "call" or in_tool_loop(request.messages)
        route: Any = request.state.get(_ROUTE) if goes_on else None
        return self._request(request.messages, request.runtime, route, route, asked_for)

    def _request(
        self,
        messages: Sequence[BaseMessage],
        runtime: Runtime[ContextT],
        kept: Mapping[str, Any] | None,
        noted: Mapping[str, Any] | None,
        asked_for: Sequence[str] = (),
    ) -> CallRequest:
        options = _options(runtime.context)
        return CallRequest(
            question=last_human_text(messages),
            needs=needs_of(messages, asked_for),
            cost_weight=options.cost_weight,
            among=options.among,
            kept=kept["model"] if kept else None,
            is_in_tool_loop=in_tool_loop(messages),
            noted=noted,
            may_repeat=self._serving.hedge and not is_seen(ensure_config()),
        )


def _options(context: Any) -> CallOptions:
    """The options of a run, in its context or in the `configurable` of its config."""
    given: Mapping[str, Any] = context if isinstance(context, Mapping) else {}
    if not given:
        given = {name: getattr(context, name) for name in dir(context) if name.startswith(PREFIX)}
    set_in_context = {key: value for key, value in given.items() if value is not None}
    return CallOptions.from_prefixed({**(ensure_config().get("configurable") or {}), **set_in_context})


def _routed_request(request: ModelRequest[ContextT], routed: RoutedCall) -> ModelRequest[ContextT]:
    """The request for the chosen model, with messages and settings that it understands."""
    model, settings = routed.model, request.model_settings
    if _kind(request.model) != _kind(model):
        settings = {key: value for key, value in settings.items() if key in _PORTABLE_SETTINGS}
    messages: list[Any] = [_readable(message, model) for message in request.messages]
    return request.override(model=model, messages=messages, model_settings=settings)


def _note(routed: RoutedCall) -> Mapping[str, Any]:
    """The decision as plain JSON: the one in the state for as long as its model goes on."""
    noted, decision = routed.request.noted, routed.decision
    goes_on = noted and (noted["model"], noted["clusters"]) == (decision.model, decision.clusters)
    return noted if noted and goes_on else decision.as_dict()


def _update(routed: RoutedCall) -> dict[str, Any] | None:
    """What a decision changes in the state; None if its model has the run already."""
    note = _note(routed)
    return None if note is routed.request.noted else {_ROUTE: note}


def _extended(
    routed: RoutedCall, response: ModelResponse[ResponseT]
) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
    """The response, with what its decision changes in the state."""
    update = _update(routed)
    return response if update is None else ExtendedModelResponse(response, Command(update=update))


def _as_bare_chat_model(name: object, model: Any) -> BaseChatModel:
    made = as_chat_model(name, model) if isinstance(model, str) else model
    if not isinstance(made, BaseChatModel):
        msg = (
            f"The model {shown(name)} should be a bare chat model, or a name for init_chat_model such as "
            f"'openai:gpt-5-nano', not {type(model).__name__}. The agent binds tools to it by itself."
        )
        raise InvalidInputError(msg)
    return made


def _text_answer(response: Any) -> AIMessage | None:
    inner, answer = getattr(response, "model_response", response), message_in(response)
    return None if answer is None or answer.tool_calls or inner.structured_response is not None else answer


_AGENTS = Framework(
    as_model=_as_bare_chat_model,
    capabilities_of=capabilities_of,
    is_refusal=is_refusal,
    is_empty=is_empty,
    text_answer=_text_answer,
    checking=checking,
)


def _traced(routed: RoutedCall, shown: Shown) -> AbstractContextManager[None]:
    """Have the runs inside carry the decision. `model.with_config` would hide the model from the agent."""
    decision = {f"{PREFIX}{key}": value for key, value in _note(routed).items()}
    callbacks: Any = [shown] if shown.listens_to(routed.model) else None
    return traced(RunnableConfig(tags=["unirouter"], metadata=decision, callbacks=callbacks))


def _readable(message: M, model: BaseChatModel) -> M | AIMessage:
    """The message; if another provider's model answered it, its text and tool calls alone."""
    provider = message.response_metadata.get("model_provider")
    if not isinstance(message, AIMessage) or provider is None or _is_of(model, provider):
        return message
    return AIMessage(
        message.text, name=message.name, tool_calls=message.tool_calls, invalid_tool_calls=message.invalid_tool_calls
    )


def _is_of(model: BaseChatModel, provider: str) -> bool:
    """Whether a model is of the provider that an answer names; the two name providers a little differently."""
    return provider in _kind(model) or provider == model._get_ls_params().get("ls_provider")  # noqa: SLF001


def _kind(model: BaseChatModel) -> str:
    return model._llm_type  # noqa: SLF001  # no public name says which provider a model is of
