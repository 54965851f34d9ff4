"""What the rules of a call have to know of a conversation, and what they note about it: the same for both faces."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from unirouter_integrations.langchain._capabilities import needs_of
from unirouter_integrations.langchain._history import history_for
from unirouter_integrations.langchain._messages import JudgedBy, in_tool_loop, judged_text, last_note
from unirouter_integrations.langchain._models import binds_tools
from unirouter_integrations.langchain._prompt_cache import history_costs, prices_of
from unirouter_integrations.langchain._shown import is_seen
from unirouter_integrations.serving._options import CallOptions
from unirouter_integrations.serving._registry import models_now
from unirouter_integrations.serving._serving import Serving
from unirouter_integrations.serving._steps import CallRequest, RoutedCall

M = TypeVar("M", bound=AIMessage)

Sticky = Literal["tools", "thread", "cache"]
Candidates = Callable[[Sequence[BaseMessage], RunnableConfig], Iterable[str] | None]


def request_of(
    messages: Sequence[BaseMessage],
    options: CallOptions,
    asked_for: Iterable[str],
    config: RunnableConfig,
    *,
    serving: Serving,
    judged_by: JudgedBy,
    sticky: Sticky,
    allow_overrides: bool,
    candidates: Candidates | None,
) -> CallRequest:
    """The request of a call.

    Args:
        messages: The conversation, as it is sent.
        options: The options of the call.
        asked_for: The capabilities that it needs beside those that the messages do.
        config: The config of the call.
        serving: The router, the models and their settings.
        judged_by: See `ChatUniRouter`.
        sticky: See `ChatUniRouter`.
        allow_overrides: See `ChatUniRouter`.
        candidates: See `ChatUniRouter`.
    """
    options = options if candidates is None else options.within(candidates(messages, config))
    loop, last = in_tool_loop(messages), last_note(messages) if allow_overrides else None
    surcharges = {}
    if sticky == "cache" and not loop:
        prices = prices_of(models_now(serving.models) if options.among is None else options.among, serving)
        surcharges = history_costs(messages, prices)
    return CallRequest(
        question=judged_text(messages, judged_by),
        needs=needs_of(messages, asked_for),
        cost_weight=options.cost_weight,
        among=options.among,
        max_error=options.max_error,
        max_cost=options.max_cost,
        kept=last["model"] if last and (loop or sticky == "thread") else None,
        is_in_tool_loop=loop,
        noted=last if loop else None,  # a thread goes on with other questions
        surcharges=surcharges,
        may_repeat=serving.hedge
        and not is_seen(config)
        and not any(map(binds_tools, models_now(serving.models).values())),
        can_go_on=True,
    )


def history_of(messages: Sequence[BaseMessage], routed: RoutedCall) -> Sequence[BaseMessage]:
    """The conversation as the chosen model takes it: the very list, unless something in it has to be changed."""
    given = history_for(messages, routed.decision.model, routed.model)
    return messages if len(given) == len(messages) and all(map(operator.is_, given, messages)) else given


def note_of(routed: RoutedCall) -> Mapping[str, Any]:
    """The decision of a call as plain JSON; in a loop of tool calls its first one, for as long as its model goes on."""
    noted, decision = routed.request.noted, routed.decision
    goes_on = noted and (noted["model"], noted.get("clusters")) == (decision.model, decision.clusters)
    return noted if noted and goes_on else decision.as_dict()


def with_note(answer: M, routed: RoutedCall) -> M:
    """Copy an answer and add its decision. The original may belong to a cache.

    Of routers inside routers, the innermost decision names the model.
    """
    note: dict[str, Any] = {"unirouter": note_of(routed)}
    if routed.on_cut:  # it follows chunks of another model, whose note does not add up with this one's
        note = {"unirouter_cuts": [{"on_cut": routed.on_cut, "model": routed.decision.model}]}
    return answer.model_copy(update={"response_metadata": {**note, **answer.response_metadata}})
