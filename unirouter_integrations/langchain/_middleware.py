"""`UniRouterMiddleware`: the router inside an agent of `langchain.agents.create_agent`.

An agent binds its tools to whichever model the middleware hands it, so each model gets tools and response format in the
form that it understands. That is why agents are routed here, and not by a chat model that hides the others.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, get_args

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs
from typing_extensions import override

from unirouter_integrations._checks import one_of, shown
from unirouter_integrations._router import UniRouter
from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.grading import ScorerLike
from unirouter_integrations.langchain._capabilities import capabilities_of, server_tools_in
from unirouter_integrations.langchain._chat_model import checking
from unirouter_integrations.langchain._history import settings_for
from unirouter_integrations.langchain._messages import JudgedBy, is_empty, is_refusal, message_in, usage_in
from unirouter_integrations.langchain._models import as_chat_model, traced, without_bindings
from unirouter_integrations.langchain._prompt_cache import prices_of
from unirouter_integrations.langchain._requests import Candidates, Sticky, history_of, note_of, request_of, with_note
from unirouter_integrations.langchain._shown import Shown, Watched
from unirouter_integrations.langchain._tools import ABOUT_TOOLS, tool_arguments
from unirouter_integrations.serving._options import PREFIX, CallOptions
from unirouter_integrations.serving._question import WaysToJudge
from unirouter_integrations.serving._serving import Fallback, Serving, as_check, health_of
from unirouter_integrations.serving._steps import CallRequest, Framework, RoutedCall

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ContextT,
        ModelRequest,
        ModelResponse,
        ResponseT,
    )
except ImportError as error:
    msg = "UniRouterMiddleware needs LangChain's agents: pip install 'langchain>=1.3'."
    raise MissingDependencyError(msg) from error

try:
    from langgraph.types import TracePolicy, omit_payload
except ImportError:  # of older versions
    _TRACE_POLICY = None
else:
    _TRACE_POLICY = TracePolicy(process_inputs=omit_payload)  # the model's own run has the messages


class UniRouterMiddleware(AgentMiddleware[AgentState[Any], ContextT, ResponseT]):
    """Gives each call of an agent to the registered model with the least expected error plus weighted cost.

    A conversation is judged by what its user asks now. The model that takes a question keeps it, however many tools it
    calls; the next human message is decided anew. Another model takes over if that one fails, is unregistered, or
    cannot take a call (no tools, no images, too long an input, by its `profile` or what a `ModelRegistry` declares).

    Each answer carries its decision under `response_metadata["unirouter"]`: that of the first one of its question, for
    as long as the same model goes on. It is all that later calls know of earlier ones, so agents within agents do not
    disturb each other. If something inside, such as `ModelFallbackMiddleware`, had a model of its own answer, there is
    no decision on the answer. The traces of the model runs, a fallback's too, carry it as metadata `unirouter_model`,
    `unirouter_cluster` and so on.

    A run may have its own options, in its context (attributes or keys) or in `config["configurable"]`:
    `unirouter_cost_weight`, `unirouter_among` (names), `unirouter_model` (a name, which no other model replaces),
    `unirouter_max_error` and `unirouter_max_cost`.

    List it first. What comes after it, such as prompt caching, then sees the chosen model. A router listed after
    `ModelFallbackMiddleware` would choose the failing model again on every attempt.

    Providers do not understand all of each other's messages. Answers of another provider than the chosen model's are
    therefore sent as their text and tool calls alone, without reasoning, item ids and the like; in the state they stay
    as they were. Of `model_settings` made for another provider's model only `temperature`, `max_tokens`, `stop` and
    what is about tools (`parallel_tool_calls`, `strict`) are kept.

    Args:
        router: The fitted router, with a profile registered for each of the models.
        models: The chat models by name, or names for `init_chat_model`; a dict or a `ModelRegistry`. They may have
            arguments bound, but no tools. It is kept, not copied: a model joins by `models[name] = model` and
            `router.register(profile)`, while the agent is in use.
        cost_weight: lambda for this agent; None for the router's.
        judged_by: See `ChatUniRouter`.
        sticky: See `ChatUniRouter`.
        allow_overrides: See `ChatUniRouter`; of options in the context as well.
        candidates: See `ChatUniRouter`.
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

    trace_policy = _TRACE_POLICY

    def __init__(
        self,
        router: UniRouter,
        models: MutableMapping[str, Any],
        *,
        cost_weight: float | None = None,
        judged_by: JudgedBy = "recent_human",
        sticky: Sticky = "tools",
        allow_overrides: bool = True,
        candidates: Candidates | None = None,
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
        one_of(sticky, "sticky", get_args(Sticky))
        if not callable(judged_by):
            one_of(judged_by, "judged_by, if it is no function,", get_args(WaysToJudge))
        self._judged_by = judged_by
        self._sticky: Sticky = sticky
        self._allow_overrides = allow_overrides
        self._candidates = candidates
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
        if sticky == "cache":
            prices_of(models, self._serving)

    @property
    def router(self) -> UniRouter:
        """The router."""
        return self._serving.router

    @property
    def models(self) -> MutableMapping[str, Any]:
        """The chat models by name: the dict or registry that was given."""
        return self._serving.models

    @override
    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT]:
        """Have the chosen model answer, or the next one; the decision is noted on the answer."""
        shown = Shown(ensure_config())

        def ask(routed: RoutedCall) -> ModelResponse[ResponseT]:
            watched = Watched()
            with _traced(routed, shown, watched):
                response = handler(_routed_request(request, routed))
            shown.check_end(response, routed.decision.model)
            return response if watched.was_replaced() else _noted(response, routed)

        (routed,) = self._serving.decide([self._request(request)])
        return self._serving.call(routed._replace(seen=shown.text), ask)[1]

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT]:
        """Async version of `wrap_model_call`."""
        shown = Shown(ensure_config())

        async def ask(routed: RoutedCall) -> ModelResponse[ResponseT]:
            watched = Watched()
            with _traced(routed, shown, watched):
                response = await handler(_routed_request(request, routed))
            shown.check_end(response, routed.decision.model)
            return response if watched.was_replaced() else _noted(response, routed)

        (routed,) = await self._serving.adecide([self._request(request)])
        return (await self._serving.acall(routed._replace(seen=shown.text), ask))[1]

    def _request(self, request: ModelRequest[ContextT]) -> CallRequest:
        asked_for = ["tool_calling", *server_tools_in(request.tools)] if request.tools else []
        asked_for += ["structured_output"] if request.response_format is not None else []
        system = [] if request.system_message is None else [request.system_message]
        return request_of(
            [*system, *request.messages],
            _options(request.runtime.context, allowed=self._allow_overrides),
            asked_for,
            ensure_config(),
            serving=self._serving,
            judged_by=self._judged_by,
            sticky=self._sticky,
            allow_overrides=self._allow_overrides,
            candidates=self._candidates,
        )


def _options(context: Any, *, allowed: bool) -> CallOptions:
    """The options of a run, in its context or in the `configurable` of its config."""
    given: Mapping[str, Any] = context if isinstance(context, Mapping) else {}
    if not given:
        given = {name: getattr(context, name) for name in dir(context) if name.startswith(PREFIX)}
    set_in_context = {key: value for key, value in given.items() if value is not None}
    given = {**(ensure_config().get("configurable") or {}), **set_in_context}
    return CallOptions.from_prefixed(given, allowed=allowed)


def _routed_request(request: ModelRequest[ContextT], routed: RoutedCall) -> ModelRequest[ContextT]:
    """The request for the chosen model, with messages and settings that it understands."""
    model, bound, _ = without_bindings(routed.model)
    messages: Any = history_of(request.messages, routed)
    settings = settings_for(request.model_settings, request.model, model)
    said = {key: value for key, value in request.model_settings.items() if key in ABOUT_TOOLS and request.tools}
    return request.override(
        model=model,
        messages=messages,
        model_settings={**bound, **tool_arguments({**settings, **said}, model)},
        tool_choice=tool_arguments({"tool_choice": request.tool_choice}, model)["tool_choice"],
    )


def _noted(response: ModelResponse[ResponseT], routed: RoutedCall) -> ModelResponse[ResponseT]:
    """Copy a response and note the decision on its answers."""
    noted = [with_note(each, routed) if isinstance(each, AIMessage) else each for each in response.result]
    return replace(response, result=noted)


def _as_agent_model(name: object, model: Any) -> Any:
    made = as_chat_model(name, model)
    bare, kwargs, _ = without_bindings(made)
    if not hasattr(bare, "bind_tools") or "tools" in kwargs:
        msg = (
            f"The model {shown(name)} should be a chat model without tools and retries, not {type(model).__name__}: an "
            "agent binds tools to it by itself, and ModelRetryMiddleware retries."
        )
        raise InvalidInputError(msg)
    return made


def _text_answer(response: Any) -> AIMessage | None:
    inner, answer = getattr(response, "model_response", response), message_in(response)
    return None if answer is None or answer.tool_calls or inner.structured_response is not None else answer


_AGENTS = Framework(
    as_model=_as_agent_model,
    capabilities_of=capabilities_of,
    is_refusal=is_refusal,
    is_empty=is_empty,
    text_answer=_text_answer,
    usage_of=usage_in,
    checking=checking,
)


def _traced(routed: RoutedCall, shown: Shown, watched: Watched) -> AbstractContextManager[None]:
    """Have the runs inside carry the decision. `model.with_config` would hide the model from the agent."""
    decision = {f"{PREFIX}{key}": value for key, value in note_of(routed).items()}
    callbacks: Any = [watched, shown] if shown.listens_to(routed.model) else [watched]
    ours = RunnableConfig(tags=["unirouter"], metadata=decision, callbacks=callbacks)
    return traced(merge_configs(without_bindings(routed.model)[2], ours))
