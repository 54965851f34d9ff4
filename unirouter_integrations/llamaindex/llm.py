"""`UniRouterLLM`: an LLM that hands every call to one of several LLMs.

It *delegates*, and its methods carry none of LlamaIndex's callbacks, so every call is one pair of events, the chosen
model's, and its tokens are counted once. Templates are delegated before they are filled in: there the question still
stands apart from the retrieved text, and the chosen model's own system prompt and parser are used.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from llama_index.core.base.llms.types import (
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse, LLMMetadata, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import TokenAsyncGen, TokenGen
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from typing_extensions import override

from unirouter_integrations.checks import check_cost_weight
from unirouter_integrations.decision import Pool, RoutingDecision
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.escalation import after_check, after_refusal, as_check, passes
from unirouter_integrations.fallback import Cooldowns, next_best, within, without_embedding
from unirouter_integrations.llamaindex.calls import (
    Call,
    call_of_messages,
    call_of_template,
    call_of_text,
    is_refusal,
    is_text,
)
from unirouter_integrations.llamaindex.capabilities import able, joint_metadata, takes_tools
from unirouter_integrations.llamaindex.events import announce
from unirouter_integrations.llamaindex.models import check_models, register, unregister
from unirouter_integrations.profiles import LLMProfile
from unirouter_integrations.profiling.runner import run_in_background
from unirouter_integrations.router import UniRouter

T = TypeVar("T")
R = TypeVar("R", ChatResponse, CompletionResponse)
M = TypeVar("M", bound=BaseModel)

_RECENT = 1024
_SETTINGS_OF_MODELS = (
    "rate_limiter",
    "system_prompt",
    "output_parser",
    "query_wrapper_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
)


class _Moment(NamedTuple):
    """What a call is decided by, as it was when the call came: its embedding may take a while."""

    models: dict[str, LLM]
    pool: Pool
    cost_weight: float


class _Chosen(NamedTuple):
    """The model of one call, and the decision as it is noted on every answer."""

    model: FunctionCallingLLM  # or any LLM, where no tools are offered
    decision: RoutingDecision
    note: dict[str, Any]
    call: Call
    models: dict[str, LLM]

    def given(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """A list of its own, which models may append to, with system messages in the role that the model has them."""
        role = self.model.metadata.system_role
        if role == MessageRole.SYSTEM:
            return list(messages)
        return [
            message.model_copy(update={"role": role}) if message.role == MessageRole.SYSTEM else message
            for message in messages
        ]

    def noted(self, answer: R) -> R:
        """A copy that says which model gave it and why. Of routers inside routers, the innermost names the model."""
        return answer.model_copy(update={"additional_kwargs": {"unirouter": self.note, **answer.additional_kwargs}})

    def noted_stream(self, answers: Generator[R, None, None]) -> Generator[R, None, None]:
        """`noted`, for every part."""
        for answer in answers:
            yield self.noted(answer)

    async def noted_astream(self, answers: AsyncGenerator[R, None]) -> AsyncGenerator[R, None]:
        """`noted_stream`, awaited; closed early, it closes the model's stream at once."""
        try:
            async for answer in answers:
                yield self.noted(answer)
        finally:
            await answers.aclose()


class UniRouterLLM(FunctionCallingLLM):
    """An LLM that sends each call to the registered model with the least expected error plus weighted cost.

    Put it where an LLM stood: `Settings.llm`, `llm=`, chat engines, agents. A chat is judged by the last message of the
    user, a RAG prompt by its question (the template's `query_str`), never by the retrieved text. Answers come from the
    chosen model as they are, with the decision added under `additional_kwargs["unirouter"]` (of a stream: on every
    part); a `UniRouteDecisionEvent` comes before the events of the model's call. If a model fails, the next best one
    takes the call. A loop of tool calls stays with the model that began it.

    Models that cannot take a call, by their `metadata` (no tools, too short a context), are left out of it; the
    decision holds the reasons. `metadata` is that of all models together, as they are when it is read: its context
    window is the shortest one.

    A copy, also a deep one, has the same models. A pickle has none, for models hold keys, and no `escalate`; put them
    back with `llm.models.update(...)`.

    Attributes:
        router: The fitted router, with a profile registered for each of the models.
        models: The LLMs by name. The dict is kept, not copied.
        cost_weight: lambda for the calls of this LLM; None for the router's.
        fallback: Whether, after an error that another model could survive (rate limit, timeout, lost connection, server
            error, context overflow), the next best model of the same decision takes the call; of a stream only before
            its first part. `"refusals"`: after a refusal as well, where the provider raises an error or its answer to a
            chat or a completion says so; the texts that templates give do not. The decision then names
            the model that answered, and those that failed among the excluded ones. Other errors, those within a loop of
            tool calls, and the last one's, are raised as they come.
        cooldown: For how many seconds a model rests that failed three times in a row, unless its provider says for how
            long. Then one call tries it.
        default: The name of the model that answers where the question cannot be embedded; None to raise the error.
        embedding_timeout: After how many seconds that is so; None for no limit.
        escalate: A scorer that checks answers, see `as_scorer`; the question is all it can compare them with. One that
            scores below 0.5 sends the call on to the next model that is expected to err less; both are paid. For
            instance `judge(model)`, `"confidence"`, `"probability"` (chats only), or a function of (answer, example).
            Streams, calls of tools and filled-in forms are not checked. If the better model fails, the answer stands.

    Raises:
        InvalidInputError: From the constructor, if a model has no profile or is no LLM, `escalate` needs a reference,
            or a setting is given that only the models can have, such as `system_prompt`.

    Example:
        ```python
        Settings.llm = UniRouterLLM(router=router, models={"mini": OpenAI(...), "sonnet": Anthropic(...)})
        index.as_query_engine().query("...")
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    cost_weight: float | None = None
    fallback: bool | Literal["refusals"] = True
    cooldown: float = Field(default=30.0, ge=0)
    default: str | None = None
    embedding_timeout: float | None = Field(default=None, gt=0)
    escalate: Any = Field(default=None, exclude=True, repr=False)
    _router: UniRouter = PrivateAttr()
    _models: dict[str, LLM] = PrivateAttr()
    _recent: OrderedDict[int, str] = PrivateAttr(default_factory=OrderedDict)
    _lent: dict[str, CallbackManager] = PrivateAttr(default_factory=dict)
    _cooldowns: Cooldowns = PrivateAttr()

    def __init__(
        self, *, router: UniRouter, models: dict[str, LLM], cost_weight: float | None = None, **fields: Any
    ) -> None:
        check_cost_weight(cost_weight)
        for setting in _SETTINGS_OF_MODELS:
            if fields.get(setting) is not None:
                msg = f"{setting} has no effect on a UniRouterLLM, which makes no call itself; set it on its models."
                raise InvalidInputError(msg)
        check_models(router, models)
        check = as_check(fields.pop("escalate", None))
        super().__init__(cost_weight=cost_weight, escalate=check, **fields)
        if self.default is not None and self.default not in models:
            msg = f"default should be one of the models, {', '.join(map(repr, models))}, but is {self.default!r}."
            raise InvalidInputError(msg)
        self._router, self._models, self._cooldowns = router, models, Cooldowns(self.cooldown)

    @property
    def router(self) -> UniRouter:
        """The fitted router."""
        return self._router

    @property
    def models(self) -> dict[str, LLM]:
        """The LLMs by name, the very dict that was given."""
        return self._models

    def register(self, name: str, model: LLM, profile: LLMProfile) -> None:
        """Let a new model take part from now on, wherever this LLM is used; or replace one.

        Args:
            name: Its name.
            model: The LLM.
            profile: Its profile under the same name, as `router.profile(...)` makes it.

        Raises:
            InvalidInputError: If the profile is of another name or of other clusters, or the model is not an LLM.
        """
        register(self._router, self._models, name, model, profile)

    def unregister(self, name: str) -> None:
        """Take a model out of every decision from now on. Calls that already chose it are finished by it.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        unregister(self._router, self._models, name)

    @classmethod
    @override
    def class_name(cls) -> str:
        return "UniRouterLLM"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return joint_metadata([*self._models.values()])

    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._ask(
            call_of_messages(messages),
            lambda chosen: chosen.noted(chosen.model.chat(chosen.given(messages), **kwargs)),
        )

    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        async def ask(chosen: _Chosen) -> ChatResponse:
            return chosen.noted(await chosen.model.achat(chosen.given(messages), **kwargs))

        return await self._aask(call_of_messages(messages), ask)

    @override
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._ask_stream(
            call_of_messages(messages),
            lambda chosen: chosen.noted_stream(chosen.model.stream_chat(chosen.given(messages), **kwargs)),
        )

    @override
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        async def ask(chosen: _Chosen) -> ChatResponseAsyncGen:
            return chosen.noted_astream(await chosen.model.astream_chat(chosen.given(messages), **kwargs))

        return await self._aask_stream(call_of_messages(messages), ask)

    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self._ask(
            call_of_text(prompt),
            lambda chosen: chosen.noted(chosen.model.complete(prompt, formatted=formatted, **kwargs)),
        )

    @override
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        async def ask(chosen: _Chosen) -> CompletionResponse:
            return chosen.noted(await chosen.model.acomplete(prompt, formatted=formatted, **kwargs))

        return await self._aask(call_of_text(prompt), ask)

    @override
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._ask_stream(
            call_of_text(prompt),
            lambda chosen: chosen.noted_stream(chosen.model.stream_complete(prompt, formatted=formatted, **kwargs)),
        )

    @override
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        async def ask(chosen: _Chosen) -> CompletionResponseAsyncGen:
            return chosen.noted_astream(await chosen.model.astream_complete(prompt, formatted=formatted, **kwargs))

        return await self._aask_stream(call_of_text(prompt), ask)

    @override
    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        call = call_of_template(self, prompt, prompt_args)
        return self._ask(call, lambda chosen: chosen.model.predict(prompt, **prompt_args))

    @override
    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        call = call_of_template(self, prompt, prompt_args)
        return await self._aask(call, lambda chosen: chosen.model.apredict(prompt, **prompt_args))

    @override
    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        call = call_of_template(self, prompt, prompt_args)
        return self._ask_stream(call, lambda chosen: chosen.model.stream(prompt, **prompt_args))

    @override
    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        call = call_of_template(self, prompt, prompt_args)
        return await self._aask_stream(call, lambda chosen: chosen.model.astream(prompt, **prompt_args))

    @override
    def chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponse:
        def ask(chosen: _Chosen) -> ChatResponse:
            history = chosen.given(chat_history or [])
            return chosen.noted(chosen.model.chat_with_tools(tools, user_msg, history, *args, **kwargs))

        return self._ask(_call_with_tools(user_msg, chat_history), ask)

    @override
    async def achat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponse:
        async def ask(chosen: _Chosen) -> ChatResponse:
            history = chosen.given(chat_history or [])
            return chosen.noted(await chosen.model.achat_with_tools(tools, user_msg, history, *args, **kwargs))

        return await self._aask(_call_with_tools(user_msg, chat_history), ask)

    @override
    def stream_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponseGen:
        def ask(chosen: _Chosen) -> ChatResponseGen:
            history = chosen.given(chat_history or [])
            return chosen.noted_stream(chosen.model.stream_chat_with_tools(tools, user_msg, history, *args, **kwargs))

        return self._ask_stream(_call_with_tools(user_msg, chat_history), ask)

    @override
    async def astream_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponseAsyncGen:
        async def ask(chosen: _Chosen) -> ChatResponseAsyncGen:
            history = chosen.given(chat_history or [])
            parts = await chosen.model.astream_chat_with_tools(tools, user_msg, history, *args, **kwargs)
            return chosen.noted_astream(parts)

        return await self._aask_stream(_call_with_tools(user_msg, chat_history), ask)

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """As the model that gave the response reads them; of a response that nobody gave, as any model does."""
        models = {name: model for name, model in dict(self._models).items() if takes_tools(model)}
        noted = response.additional_kwargs.get("unirouter", {}).get("model")
        if not models:
            return super().get_tool_calls_from_response(response, error_on_no_tool_call, **kwargs)
        author = cast("FunctionCallingLLM", models.get(noted) or next(iter(models.values())))
        return author.get_tool_calls_from_response(response, error_on_no_tool_call=error_on_no_tool_call, **kwargs)

    @override
    def structured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> M:
        def ask(chosen: _Chosen) -> M:
            filled: M = chosen.model.structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return filled

        return self._ask(call_of_template(self, prompt, prompt_args), ask)

    @override
    async def astructured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> M:
        async def ask(chosen: _Chosen) -> M:
            filled: M = await chosen.model.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return filled

        return await self._aask(call_of_template(self, prompt, prompt_args), ask)

    @override
    def stream_structured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        def ask(chosen: _Chosen) -> Generator[Any, None, None]:
            return chosen.model.stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        return self._ask_stream(call_of_template(self, prompt, prompt_args), ask)

    @override
    async def astream_structured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        async def ask(chosen: _Chosen) -> AsyncGenerator[Any, None]:
            return await chosen.model.astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        return await self._aask_stream(call_of_template(self, prompt, prompt_args), ask)

    @override
    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers have this form; of a RAG prompt it too sees the question alone."""
        return _StructuredUniRouterLLM(llm=self, output_cls=output_cls, **kwargs)

    @override
    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        msg = "UniRouterLLM prepares no call itself; call chat_with_tools, or a method like it."
        raise NotImplementedError(msg)

    @override
    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [("models", [*self._models]), ("router", self._router), ("cost_weight", self.cost_weight)]

    def __reduce__(self) -> tuple[Any, ...]:
        settings = ("cost_weight", "fallback", "cooldown", "default", "embedding_timeout")
        return _without_models, (self._router, {name: getattr(self, name) for name in settings})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "UniRouterLLM":
        return self.model_copy()

    def _ask(self, call: Call, ask: Callable[[_Chosen], T], *, checked: bool = True) -> T:
        """What the chosen model gives, or the next best one if it fails, refuses or does not pass the check."""
        chosen, doubted = self._choose(call), list[tuple[_Chosen, T]]()
        while True:
            try:
                chosen, answer = self._open(chosen, ask)
            except Exception:
                if doubted:
                    return self._standing(*doubted[-1])
                raise
            self._cooldowns.succeeded(chosen.decision.model)
            following = self._after_refusal(answer, chosen)
            if following is None and checked and self._may_escalate(answer, chosen):
                check = passes(self.escalate, answer, call.question, chosen.decision)
                following = None if run_in_background(check) else self._after_check(chosen)
            if following is None:
                return answer
            doubted.append((chosen, answer))
            chosen = following

    async def _aask(self, call: Call, ask: Callable[[_Chosen], Awaitable[T]], *, checked: bool = True) -> T:
        """`_ask`, awaited."""
        chosen, doubted = await self._achoose(call), list[tuple[_Chosen, T]]()
        while True:
            try:
                chosen, answer = await self._aopen(chosen, ask)
            except Exception:
                if doubted:
                    return self._standing(*doubted[-1])
                raise
            self._cooldowns.succeeded(chosen.decision.model)
            following = self._after_refusal(answer, chosen)
            if following is None and checked and self._may_escalate(answer, chosen):
                passed = await passes(self.escalate, answer, call.question, chosen.decision)
                following = None if passed else self._after_check(chosen)
            if following is None:
                return answer
            doubted.append((chosen, answer))
            chosen = following

    def _ask_stream(self, call: Call, ask: Callable[[_Chosen], Generator[T, None, None]]) -> Generator[T, None, None]:
        """The chosen model's stream, or the next best one's if it fails before its first part."""
        chosen, parts = self._open(self._choose(call), ask)

        def going_on() -> Generator[T, None, None]:
            asked, answers, begun = chosen, parts, False
            while True:
                try:
                    for part in answers:
                        if not begun:
                            self._cooldowns.succeeded(asked.decision.model)
                        begun = True
                        yield part
                except Exception as error:
                    following = None if begun else self._after_failure(error, asked)
                    if following is None:
                        raise
                    asked, answers = self._open(following, ask)
                else:
                    if not begun:
                        self._cooldowns.succeeded(asked.decision.model)
                    return

        return going_on()

    def _open(self, chosen: _Chosen, ask: Callable[[_Chosen], T]) -> tuple[_Chosen, T]:
        """What the chosen model gives, or the next best one if it fails, and which one it was."""
        while True:
            try:
                return chosen, ask(chosen)
            except Exception as error:
                following = self._after_failure(error, chosen)
                if following is None:
                    raise
                chosen = following

    async def _aopen(self, chosen: _Chosen, ask: Callable[[_Chosen], Awaitable[T]]) -> tuple[_Chosen, T]:
        """`_open`, awaited."""
        while True:
            try:
                return chosen, await ask(chosen)
            except Exception as error:
                following = self._after_failure(error, chosen)
                if following is None:
                    raise
                chosen = following

    async def _aask_stream(
        self, call: Call, ask: Callable[[_Chosen], Awaitable[AsyncGenerator[T, None]]]
    ) -> AsyncGenerator[T, None]:
        """`_ask_stream`, awaited; closed early, it closes the model's stream at once."""
        chosen, parts = await self._aopen(await self._achoose(call), ask)

        async def going_on() -> AsyncGenerator[T, None]:
            asked, answers, begun = chosen, parts, False
            while True:
                try:
                    async for part in answers:
                        if not begun:
                            self._cooldowns.succeeded(asked.decision.model)
                        begun = True
                        yield part
                except Exception as error:
                    following = None if begun else self._after_failure(error, asked)
                    if following is None:
                        raise
                else:
                    if not begun:
                        self._cooldowns.succeeded(asked.decision.model)
                    return
                finally:
                    await answers.aclose()
                asked, answers = await self._aopen(following, ask)

        return going_on()

    def _choose(self, call: Call) -> _Chosen:
        moment = self._now()
        try:
            vectors = within(self.embedding_timeout, lambda: moment.pool.clusters.embed([call.question]))
        except Exception as error:
            if self.default is None:
                raise
            return self._chosen(call, moment, _blind(moment.pool), error)
        return self._chosen(call, moment, vectors)

    async def _achoose(self, call: Call) -> _Chosen:
        moment = self._now()
        try:
            vectors = await asyncio.wait_for(moment.pool.clusters.aembed([call.question]), self.embedding_timeout)
        except Exception as error:
            if self.default is None:
                raise
            return self._chosen(call, moment, _blind(moment.pool), error)
        return self._chosen(call, moment, vectors)

    def _now(self) -> _Moment:
        models, weight = dict(self._models), self.cost_weight
        pool = self._router.registered(models)
        return _Moment(models, pool, self._router.cost_weight if weight is None else weight)

    def _chosen(self, call: Call, moment: _Moment, vectors: Vectors, failure: Exception | None = None) -> _Chosen:
        names, excluded = able(moment.models, call)
        if failure is not None:
            names, others = without_embedding(self.default, names, failure)
            excluded |= others
        pool = moment.pool.registered(names)
        before = self._recent.get(hash(call.question))
        if call.under_way and before in pool.names:
            pool = pool.among([before])
        else:
            rested, resting = self._cooldowns.rested(pool.names)
            pool = pool.among(rested)
            excluded |= resting
        (decision,) = self._router.route_many(vectors=vectors, cost_weight=moment.cost_weight, among=pool)
        if excluded:
            decision = replace(decision, excluded=excluded)
        return self._begun(decision, call, moment.models)

    def _begun(self, decision: RoutingDecision, call: Call, models: dict[str, LLM]) -> _Chosen:
        """Everybody told that the model of a decision is about to be called."""
        name = decision.model
        self._remember(hash(call.question), name)
        self._cooldowns.begun(name)
        announce(decision)
        self._lend_callbacks(name, models[name])
        return _Chosen(cast("FunctionCallingLLM", models[name]), decision, decision.as_dict(), call, models)

    def _standing(self, chosen: _Chosen, answer: T) -> T:
        """An answer that stands although it is doubted: its model goes on with the question."""
        self._remember(hash(chosen.call.question), chosen.decision.model)
        return answer

    def _after_failure(self, error: Exception, chosen: _Chosen) -> _Chosen | None:
        """The call as the next best model of the same decision takes it; None if none could do better."""
        decision = next_best(self._router, chosen.decision, error, self._cooldowns, self.fallback)
        return None if decision is None else self._begun(decision, chosen.call, chosen.models)

    def _after_refusal(self, answer: object, chosen: _Chosen) -> _Chosen | None:
        """The call as the next best model of the same decision takes it, if that is asked for after a refusal."""
        if self.fallback != "refusals" or not is_refusal(answer):
            return None
        decision = after_refusal(self._router, chosen.decision)
        return None if decision is None else self._begun(decision, chosen.call, chosen.models)

    def _may_escalate(self, answer: object, chosen: _Chosen) -> bool:
        """Whether an answer is checked: only if there is a text to check, and somebody to do better."""
        return self.escalate is not None and is_text(answer) and bool(chosen.decision.better)

    def _after_check(self, chosen: _Chosen) -> _Chosen | None:
        """The call as the next better model takes it."""
        decision = after_check(self._router, chosen.decision)
        return None if decision is None else self._begun(decision, chosen.call, chosen.models)

    def _remember(self, question: int, model: str) -> None:
        """Keep who works on a question, for the next steps of its loop; the oldest question is forgotten."""
        self._recent.pop(question, None)  # to the end, in steps that other threads may come between
        self._recent[question] = model
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)

    def _lend_callbacks(self, name: str, model: LLM) -> None:
        """Have a model without handlers of its own report to ours, which `Settings.callback_manager` sets."""
        theirs = model.callback_manager
        if theirs is not self.callback_manager and (not theirs.handlers or theirs is self._lent.get(name)):
            model.callback_manager = self._lent[name] = self.callback_manager


class _StructuredUniRouterLLM(StructuredLLM):
    """Chooses by the question of a template, before it is filled in."""

    llm: UniRouterLLM

    @override
    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        call = call_of_template(self, prompt, prompt_args)
        return self.llm._ask(  # noqa: SLF001
            call, lambda chosen: self._around(chosen).predict(prompt, **prompt_args), checked=False
        )

    @override
    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        call = call_of_template(self, prompt, prompt_args)
        return await self.llm._aask(  # noqa: SLF001
            call, lambda chosen: self._around(chosen).apredict(prompt, **prompt_args), checked=False
        )

    @override
    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        call = call_of_template(self, prompt, prompt_args)
        return self.llm._ask_stream(  # noqa: SLF001
            call, lambda chosen: self._around(chosen).stream(prompt, **prompt_args)
        )

    @override
    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        call = call_of_template(self, prompt, prompt_args)
        return await self.llm._aask_stream(  # noqa: SLF001
            call, lambda chosen: self._around(chosen).astream(prompt, **prompt_args)
        )

    def _around(self, chosen: _Chosen) -> StructuredLLM:
        """The same around the chosen model."""
        return StructuredLLM(**{**dict(self), "llm": chosen.model})


def _call_with_tools(user_msg: str | ChatMessage | None, history: Sequence[ChatMessage] | None) -> Call:
    asked = [ChatMessage(user_msg)] if isinstance(user_msg, str) else [user_msg] if user_msg else []
    return call_of_messages([*(history or ()), *asked], with_tools=True)


def _blind(pool: Pool) -> Vectors:
    """What stands for the vector of a question that could not be embedded: nothing is known of it."""
    return np.zeros((1, pool.clusters.dimension), np.float32)


def _without_models(router: UniRouter, settings: dict[str, Any]) -> UniRouterLLM:
    """What a pickle becomes."""
    llm = UniRouterLLM.__new__(UniRouterLLM)
    FunctionCallingLLM.__init__(llm, **settings)
    llm._router, llm._models, llm._cooldowns = router, {}, Cooldowns(llm.cooldown)  # noqa: SLF001
    return llm
