"""`UniRouterMiddleware`: the router inside an agent of `langchain.agents.create_agent`.

An agent binds its tools to whichever model the middleware hands it, so each model gets tools and response format in the
form that it understands. That is why agents are routed here and not by a chat model that hides the others.
"""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs, var_child_runnable_config
from typing_extensions import override

from unirouter_integrations.checks import check_cost_weight, check_profiles
from unirouter_integrations.decision import RoutingDecision
from unirouter_integrations.errors import InvalidInputError, MissingDependencyError
from unirouter_integrations.langchain.capabilities import able, needs_of
from unirouter_integrations.langchain.messages import is_under_way, last_human_text
from unirouter_integrations.langchain.registry import snapshot
from unirouter_integrations.router import UniRouter

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
    from langchain.chat_models import init_chat_model
    from langgraph.runtime import Runtime
    from langgraph.types import Command
except ImportError as error:
    msg = "UniRouterMiddleware needs LangChain's agents: pip install 'langchain>=1.3'."
    raise MissingDependencyError(msg) from error

Models = Mapping[str, BaseChatModel | str]
M = TypeVar("M", bound=BaseMessage)

_ROUTE = "unirouter_route"
_SETTINGS_OF_ALL = frozenset({"max_tokens", "stop", "temperature"})


class _Able(NamedTuple):
    """The models of a moment, the names of those that can take a call, and why the others cannot."""

    by_name: dict[str, BaseChatModel]
    names: tuple[str, ...]
    excluded: dict[str, str]

    def noted(self, decision: RoutingDecision) -> dict[str, Any]:
        """The decision with these reasons, as plain JSON."""
        return replace(decision, excluded=self.excluded).as_dict()


class UniRouterState(AgentState[Any]):
    """The agent's state with the decision in it, as plain JSON: any checkpointer can keep it."""

    unirouter_route: NotRequired[Annotated[dict[str, Any], OmitFromSchema(input=True, output=False)]]


class UniRouterMiddleware(AgentMiddleware[AgentState[Any], ContextT, ResponseT]):
    """Gives each run of an agent to the registered model with the least expected error plus weighted cost.

    A question is judged by its last human message. The model that takes it keeps it, however many tools it calls; the
    next human message is decided anew. Only if the model is unregistered meanwhile, or cannot take a call (no tools, no
    images, too long an input, by its `profile`), does another one take over. The decision is in the agent's state, and
    so in its result, as `unirouter_route`; the traces of the model runs, a fallback's too, carry it as metadata
    `unirouter_model`, `unirouter_cluster` and so on. Errors of the chosen model pass through.

    List it first: whatever comes after it, such as `ModelFallbackMiddleware` or prompt caching, then sees the chosen
    model. A router listed after `ModelFallbackMiddleware` would choose the failing model again on every attempt.

    Providers do not understand all of each other's messages. Answers of another provider than the chosen model's are
    therefore sent as their text and tool calls alone, without reasoning, item ids and the like; in the state they stay
    as they were. Of `model_settings` made for another provider's model only `temperature`, `max_tokens` and `stop` are
    kept.

    Args:
        router: The fitted router, with a profile registered for each of the models.
        models: The chat models by name, or what `init_chat_model` makes them of; a dict or a `ModelRegistry`. It is
            kept, not copied: a model joins by `models[name] = model` and `router.register(profile)`, while the agent is
            in use.
        cost_weight: lambda for this agent; None for the router's. A `cost_weight` in the context of a run, as attribute
            or key, comes before both.
        route_on: When to look for a new human message: `"run"` once at the start of each run; `"call"` before each call
            of a model, for agents to which messages are added on the way; `"thread"` only at the start of a
            checkpointed conversation, whose prompt cache is then kept.

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
        models: Models,
        *,
        cost_weight: float | None = None,
        route_on: Literal["run", "call", "thread"] = "run",
    ) -> None:
        super().__init__()
        self.router = router
        self.models = models
        self.cost_weight = cost_weight
        self.route_on = route_on
        self._made = cache(init_chat_model)
        self._check()

    def _check(self) -> None:
        if not isinstance(self.models, Mapping) or not self.models:
            msg = f"models should map names to chat models, at least one, but is {self.models!r}."
            raise InvalidInputError(msg)
        check_profiles(self.router, self.models)
        for name, model in self.models.items():
            self._chat_model(name, model)
        check_cost_weight(self.cost_weight)
        if self.route_on not in {"run", "call", "thread"}:
            msg = f"route_on should be 'run', 'call' or 'thread', but is {self.route_on!r}."
            raise InvalidInputError(msg)

    @override
    def before_agent(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Decide which model takes the run."""
        messages, models = state["messages"], self._able(state["messages"])
        if self.route_on == "call" or self._goes_on(state, models.names):
            return None
        decision = self.router.route(last_human_text(messages), **self._terms(runtime, models))
        return {_ROUTE: models.noted(decision)}

    @override
    async def abefore_agent(self, state: AgentState[Any], runtime: Runtime[ContextT]) -> dict[str, Any] | None:
        """Decide which model takes the run, awaiting the embedder."""
        messages, models = state["messages"], self._able(state["messages"])
        if self.route_on == "call" or self._goes_on(state, models.names):
            return None
        decision = await self.router.aroute(last_human_text(messages), **self._terms(runtime, models))
        return {_ROUTE: models.noted(decision)}

    @override
    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Have the model of the decision answer, after deciding if there is none that holds."""
        models = self._able(request.messages, request.tools, request.response_format)
        standing = self._standing_for(request, models.names)
        if (route := standing) is None:
            text, terms = last_human_text(request.messages), self._terms(request.runtime, models)
            route = models.noted(self.router.route(text, **terms))
        with _traced(route):
            response = handler(self._routed(request, route, models.by_name))
        return response if standing else ExtendedModelResponse(response, Command(update={_ROUTE: route}))

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Have the model of the decision answer, after deciding if there is none that holds."""
        models = self._able(request.messages, request.tools, request.response_format)
        standing = self._standing_for(request, models.names)
        if (route := standing) is None:
            text, terms = last_human_text(request.messages), self._terms(request.runtime, models)
            route = models.noted(await self.router.aroute(text, **terms))
        with _traced(route):
            response = await handler(self._routed(request, route, models.by_name))
        return response if standing else ExtendedModelResponse(response, Command(update={_ROUTE: route}))

    def _able(self, messages: Sequence[BaseMessage], tools: Sequence[Any] = (), form: object = None) -> "_Able":
        """The models that can take a call; before a run, nothing is known of its tools and its response format."""
        asked_for = {"tool_calling"} if tools else set()
        asked_for |= {"structured_output"} if form is not None else set()
        by_name = {name: self._chat_model(name, model) for name, model in snapshot(self.models).items()}
        return _Able(by_name, *able(by_name, needs_of(messages, asked_for)))

    def _goes_on(self, state: AgentState[Any], names: Collection[str]) -> bool:
        """Whether a run belongs to the decision in the state."""
        same = self.route_on == "thread" or is_under_way(state["messages"])
        return same and self._standing(state, names) is not None

    def _standing(self, state: Mapping[str, Any], names: Collection[str]) -> dict[str, Any] | None:
        """The decision in the state, if its model still takes part."""
        route: dict[str, Any] | None = state.get(_ROUTE)
        return route if route and route["model"] in names and route["model"] in self.router.profiles else None

    def _standing_for(self, request: ModelRequest[ContextT], names: Collection[str]) -> dict[str, Any] | None:
        if self.route_on == "call" and not is_under_way(request.messages):
            return None
        return self._standing(request.state, names)

    def _terms(self, runtime: Runtime[ContextT], models: "_Able") -> dict[str, Any]:
        context: Any = runtime.context
        of_run = context.get("cost_weight") if isinstance(context, Mapping) else getattr(context, "cost_weight", None)
        return {
            "cost_weight": self.cost_weight if of_run is None else of_run,
            "among": self.router.registered(models.names),
        }

    def _routed(self, request: ModelRequest[ContextT], route: dict[str, Any], models: Models) -> ModelRequest[ContextT]:
        model = self._chat_model(route["model"], models[route["model"]])
        settings = request.model_settings
        if _kind(request.model) != _kind(model):
            settings = {key: value for key, value in settings.items() if key in _SETTINGS_OF_ALL}
        return request.override(
            model=model,
            messages=[_readable(message, model) for message in request.messages],
            model_settings=settings,
        )

    def _chat_model(self, name: str, model: object) -> BaseChatModel:
        if isinstance(model, str):
            model = self._made(model)
        if not isinstance(model, BaseChatModel):
            msg = (
                f"The model {name!r} should be a bare chat model, or a name for init_chat_model such as "
                f"'openai:gpt-5-nano', not {type(model).__name__}. The agent binds tools to it by itself."
            )
            raise InvalidInputError(msg)
        return model


@contextmanager
def _traced(route: dict[str, Any]) -> Iterator[None]:
    """Have the runs inside carry the decision. `model.with_config` would hide the model from the agent."""
    decision = {f"unirouter_{key}": value for key, value in route.items()}
    config = merge_configs(ensure_config(), RunnableConfig(tags=["unirouter"], metadata=decision))
    token = var_child_runnable_config.set(config)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


def _readable(message: M, model: BaseChatModel) -> M | AIMessage:
    """The message, or its text and tool calls if it is an answer of another provider than the model's."""
    provider = message.response_metadata.get("model_provider")
    if not isinstance(message, AIMessage) or provider is None or _is_of(model, provider):
        return message
    return AIMessage(
        message.text, name=message.name, tool_calls=message.tool_calls, invalid_tool_calls=message.invalid_tool_calls
    )


def _is_of(model: BaseChatModel, provider: str) -> bool:
    """Whether a model is of the provider that an answer names; the names differ a little between the two."""
    return provider in _kind(model) or provider == model._get_ls_params().get("ls_provider")  # noqa: SLF001


def _kind(model: BaseChatModel) -> str:
    return model._llm_type  # noqa: SLF001  # no public name says which provider a model is of
