"""`UniRouterLLM`: an LLM that hands every call to one of several LLMs.

It *delegates*, and its methods carry none of LlamaIndex's callbacks, so every call is one pair of events, the chosen
model's, and its tokens are counted once. Templates are delegated before they are filled in: there the question is
still separate from the retrieved text, and the chosen model's own system prompt and parser are used.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

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

from unirouter_integrations._checks import check_known, one_of, whole_number
from unirouter_integrations._router import UniRouter
from unirouter_integrations.core import LLMProfile
from unirouter_integrations.errors import InvalidInputError, NoModelError, StreamCutError
from unirouter_integrations.grading import Price
from unirouter_integrations.llamaindex._calls import (
    Call,
    JudgedBy,
    call_of_messages,
    call_of_template,
    call_of_text,
    describe,
    highest_usage,
    is_empty,
    is_refusal,
    is_text,
    usage_of,
)
from unirouter_integrations.llamaindex._capabilities import (
    ContextWindow,
    as_llm,
    capabilities_of,
    joint_metadata,
    may_repeat,
    models_with_tools,
)
from unirouter_integrations.llamaindex._events import announce
from unirouter_integrations.llamaindex._history import history_for
from unirouter_integrations.llamaindex._options import options_of_call
from unirouter_integrations.llamaindex._reports import (
    Written,
    avalues,
    awritten,
    awritten_parts,
    values,
    written,
    written_parts,
)
from unirouter_integrations.serving._health import Health
from unirouter_integrations.serving._options import CallOptions
from unirouter_integrations.serving._serving import Fallback, OnCut, Serving, as_check, health_of, settings_of
from unirouter_integrations.serving._steps import CONTINUE, CallRequest, Framework, RoutedCall

T = TypeVar("T")
R = TypeVar("R", ChatResponse, CompletionResponse)
M = TypeVar("M", bound=BaseModel)

Candidates = Callable[[str | Sequence[ChatMessage]], Iterable[str] | None]

_MAX_REMEMBERED = 1024  # questions whose models are remembered for the next steps of their loops
_SETTINGS_OF_MODELS = (
    "rate_limiter",
    "system_prompt",
    "output_parser",
    "query_wrapper_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
)
_NO_MODELS = (
    "There is no model to choose from. Register one; or, if this UniRouterLLM comes from a pickle, which leaves its "
    "models out because they hold keys, put them back: llm.models.update(...)."
)


def _text_answer(answer: object) -> object:
    answer = answer.value if isinstance(answer, Written) else answer
    return answer if is_text(answer) else None


_LLMS = Framework(as_llm, capabilities_of, is_refusal, is_empty, _text_answer, usage_of, highest_usage, describe)


class _Attempt(NamedTuple):
    """A call of one model, and the decision as it is noted on every answer."""

    model: FunctionCallingLLM  # or any LLM, where no tools are offered
    note: dict[str, Any]
    routed: RoutedCall

    def given(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """A new list, which models may append to, as the model takes it: without what is foreign to it.

        System messages are in the role that the model has for them. A model that goes on with an answer is given what
        there is of it.
        """
        role, before = self.model.metadata.system_role, self.routed.text_before
        given = [
            message.model_copy(update={"role": role})
            if message.role == MessageRole.SYSTEM != role
            else _without_note(message)
            for message in history_for(messages, self.note["model"], self.model)
        ]
        return [*given, ChatMessage(before, role=MessageRole.ASSISTANT), ChatMessage(CONTINUE)] if before else given

    def prompted(self, prompt: str) -> str:
        """The prompt of a completion; with what there is of the answer, if a model is to go on with it."""
        before = self.routed.text_before
        return f"{prompt}\n\n{before}\n\n{CONTINUE}" if before else prompt

    def noted(self, answer: R) -> R:
        """Copy the answer and add which model gave it and why. Of routers inside routers, the innermost names it.

        The parts of a stream hold all of its text so far, also what another model had said of it.
        """
        note: dict[str, Any] = {"unirouter": self.note}
        update: dict[str, Any] = {}
        if self.routed.on_cut:
            note["unirouter_cuts"] = [{"on_cut": self.routed.on_cut, "model": self.note["model"]}]
        if self.routed.text_before and isinstance(answer, ChatResponse):
            text = self.routed.text_before + (answer.message.content or "")
            update["message"] = ChatMessage(
                text, role=answer.message.role, additional_kwargs=answer.message.additional_kwargs
            )
        elif self.routed.text_before:
            update["text"] = self.routed.text_before + answer.text
        if isinstance(answer, ChatResponse):  # in a memory, only the message is left
            said = update.get("message", answer.message)
            author = {"unirouter": {"model": self.note["model"]}, **said.additional_kwargs}
            update["message"] = said.model_copy(update={"additional_kwargs": author})
        return answer.model_copy(update={**update, "additional_kwargs": {**note, **answer.additional_kwargs}})

    def noted_stream(self, answers: Generator[R, None, None]) -> Generator[R, None, None]:
        """`noted`, for every part of a stream. One without any part is no answer."""
        answer = None
        for answer in answers:
            yield self.noted(answer)
        if answer is None:
            raise StreamCutError(self.note["model"])

    async def noted_astream(self, answers: AsyncGenerator[R, None]) -> AsyncGenerator[R, None]:
        """Async version of `noted_stream`. Closed early, it closes the model's stream at once."""
        answer = None
        try:
            async for answer in answers:
                yield self.noted(answer)
        finally:
            await answers.aclose()
        if answer is None:
            raise StreamCutError(self.note["model"])


class UniRouterLLM(FunctionCallingLLM):
    """An LLM that sends each call to the registered model with the least expected error plus weighted cost.

    Put it where an LLM stood: `Settings.llm`, `llm=`, chat engines, agents. A chat is judged by what the user asks now,
    a RAG prompt by its question (the template's `query_str`), never by the retrieved text. Answers come from the chosen
    model unchanged, with the decision added under `additional_kwargs["unirouter"]` (of a stream: on every part). A
    `UniRouteDecisionEvent` comes before the events of the model's call. If a model fails, the next best one takes the
    call. A loop of tool calls stays with the model that began it, as long as that does not fail.

    Models that cannot take a call, by their `metadata` or what a `ModelRegistry` declares (no tools, too short a
    context), are left out of it; the decision holds the reasons. A model whose `metadata` cannot be read is asked last.
    `metadata` is that of all models together, as they are when it is read. For options of single calls see
    `call_options`.

    A copy, also a deep one, has the same models. A pickle has none, for models hold keys, and no `escalate`; put them
    back with `llm.models.update(...)`.

    Attributes:
        router: The fitted router, with a profile registered for each of the models.
        models: The LLMs by name, a dict or a `ModelRegistry`. It is kept, not copied.
        cost_weight: lambda for the calls of this LLM; None for the router's.
        judged_by: What a chat is judged by: what the user asks now (`"recent_human"`), which is the last message of the
            user that has text, or, where it is too short to have a subject of its own, the ones before it as well; the
            last one alone (`"last_human"`), with the system message before it (`"system_and_last_human"`), the whole
            `"conversation"`, or a function from the messages to a text. Templates with a `query_str` are judged by it.
        fallback: Whether the next model of the same decision takes the call after an error that is not the caller's own
            (a wrong request, which every model would refuse); of a stream only before its first content. `"refusals"`:
            after a refusal or an empty answer as well. Or a function of the error that says so. The decision then names
            the model that answered, and those that failed among the excluded ones. Errors of a forced model and the
            last one's are raised unchanged.
        cooldown: How many seconds a model cools down at first, after more than half of its recent calls failed, unless
            its provider says for how long. It is then asked last, except for one call that probes it.
        default: The name of the model that answers where the question cannot be embedded; None to raise the error.
        embedding_timeout: After how many seconds that is so; None for no limit.
        timeout: How many seconds one model may take to answer, and between two parts; None for no limit.
        first_token_timeout: How many seconds the first content of a stream may take; None for no limit.
        deadline: How many seconds the whole call may take, all models together; None for no limit.
        max_attempts: How many models may be asked for one call; None for all.
        max_cost: What the whole call may be expected to cost, in the unit of the profiles; None for no limit.
        hedge: Whether a second model is asked as well when an answer takes longer than 95% of its model's answers; the
            first answer counts, the other call is cancelled, and both are paid. At most a tenth of the calls. Calls
            with tools are not hedged.
        on_cut: What becomes of a chat or completion that is streamed and breaks after its first text. `"raise"`: the
            error is raised, with the text so far as its `partial_text`. `"continue"`: the next model is asked to
            continue the text. `"restart"`: it starts again. The parts from then on have `unirouter_cuts` in their
            `additional_kwargs`. No provider guarantees that a continued text fits.
        sticky: Which calls stay with the model that gave the last answer, if it still takes part and can take the call:
            those of one loop of tool calls (`"tools"`), or all of a conversation (`"thread"`), whose prompt cache is
            then kept. The messages say which model gave the answers.
        context_window: The context window that `metadata` reports, into which LlamaIndex packs prompts before the model
            is known: `"widest"`, and models with a shorter one do not take longer prompts; `"shortest"`, and all models
            can take all prompts; or a number of tokens.
        candidates: A function from the messages of a chat, or the text of a completion or question, to the names of the
            models that may take it, or to None for all: for data that only your own models may see, for tenants and
            regions. Neither the options of a call nor a fallback gets past it.
        escalate: A scorer that checks answers, see `as_scorer`; it can only compare them with the question. An answer
            that scores below 0.5 sends the call on to the next model that is expected to err less; both are paid. For
            instance `judge(model)`, `"confidence"`, `"probability"` (chats only), or a function of (answer, example).
            Streams, tool calls and filled-in forms are not checked. If the better model fails, the answer stands.

    Raises:
        InvalidInputError: From the constructor, if a model has no profile or is no LLM, `escalate` needs a reference,
            a number is out of range, or a setting is given that only the models can have, such as `system_prompt`.

    Example:
        ```python
        Settings.llm = UniRouterLLM(router=router, models={"mini": OpenAI(...), "sonnet": Anthropic(...)})
        index.as_query_engine().query("...")
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    cost_weight: float | None = None
    judged_by: JudgedBy = "recent_human"
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
    sticky: Literal["tools", "thread"] = "tools"
    context_window: ContextWindow = "widest"
    candidates: Candidates | None = None
    escalate: Any = Field(default=None, exclude=True, repr=False)
    _router: UniRouter = PrivateAttr()
    _models: MutableMapping[str, LLM] = PrivateAttr()
    _remembered: OrderedDict[int, str] = PrivateAttr(default_factory=OrderedDict)
    _lent_callbacks: dict[str, CallbackManager] = PrivateAttr(default_factory=dict)
    _health: Health = PrivateAttr()

    def __init__(self, *, router: UniRouter, models: MutableMapping[str, LLM], **fields: Any) -> None:
        check_known(fields, type(self).model_fields, "UniRouterLLM")
        for setting in _SETTINGS_OF_MODELS:
            if fields.get(setting) is not None:
                msg = f"{setting} has no effect on a UniRouterLLM, which makes no call itself; set it on its models."
                raise InvalidInputError(msg)
        window = fields.get("context_window", "widest")
        if not isinstance(window, str):
            whole_number(window, "context_window, if it is a number,", low=1)
        else:
            one_of(window, "context_window", ("widest", "shortest"))
        check = as_check(fields.pop("escalate", None))
        super().__init__(escalate=check, **fields)
        self._router, self._models, self._health = router, models, health_of(models)
        self._serving.validate()

    @property
    def router(self) -> UniRouter:
        """The fitted router."""
        return self._router

    @property
    def models(self) -> MutableMapping[str, LLM]:
        """The LLMs by name: the dict or registry that was given."""
        return self._models

    @property
    def _serving(self) -> Serving:
        """The rules of its calls, with its settings as they are now."""
        return Serving(self._router, self._models, _LLMS, self._health, **settings_of(self))

    def register(self, name: str, model: LLM, profile: LLMProfile, *, price: Price | None = None) -> None:
        """Let a new model take part from now on, wherever this LLM is used; or replace one.

        Args:
            name: Its name.
            model: The LLM.
            profile: Its profile under the same name, as `router.profile(...)` makes it.
            price: Its price, for a `ModelRegistry`; None for the one in the profile's metadata, where `profile_model`
                notes it.

        Raises:
            InvalidInputError: If the profile is of another name or of other clusters, or the model is not an LLM.
        """
        self._serving.register(name, model, profile, price)

    def unregister(self, name: str) -> None:
        """Take a model out of every decision from now on. Calls that already chose it are finished by it.

        Raises:
            UnknownModelError: If no model of that name is registered.
        """
        self._serving.unregister(name)

    @classmethod
    @override
    def class_name(cls) -> str:
        return "UniRouterLLM"

    @property
    @override
    def metadata(self) -> LLMMetadata:
        return joint_metadata(self._models, self.context_window)

    @override
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._ask(
            call_of_messages(messages),
            lambda attempt: attempt.noted(attempt.model.chat(attempt.given(messages), **kwargs)),
        )

    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        async def ask(attempt: _Attempt) -> ChatResponse:
            return attempt.noted(await attempt.model.achat(attempt.given(messages), **kwargs))

        return await self._aask(call_of_messages(messages), ask)

    @override
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._ask_stream(
            call_of_messages(messages),
            lambda attempt: attempt.noted_stream(attempt.model.stream_chat(attempt.given(messages), **kwargs)),
            can_go_on=True,
        )

    @override
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        async def ask(attempt: _Attempt) -> ChatResponseAsyncGen:
            return attempt.noted_astream(await attempt.model.astream_chat(attempt.given(messages), **kwargs))

        return await self._aask_stream(call_of_messages(messages), ask, can_go_on=True)

    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self._ask(
            call_of_text(prompt),
            lambda attempt: attempt.noted(attempt.model.complete(prompt, formatted=formatted, **kwargs)),
        )

    @override
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        async def ask(attempt: _Attempt) -> CompletionResponse:
            return attempt.noted(await attempt.model.acomplete(prompt, formatted=formatted, **kwargs))

        return await self._aask(call_of_text(prompt), ask)

    @override
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._ask_stream(
            call_of_text(prompt),
            lambda attempt: attempt.noted_stream(
                attempt.model.stream_complete(attempt.prompted(prompt), formatted=formatted, **kwargs)
            ),
            can_go_on=True,
        )

    @override
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        async def ask(attempt: _Attempt) -> CompletionResponseAsyncGen:
            text = attempt.prompted(prompt)
            return attempt.noted_astream(await attempt.model.astream_complete(text, formatted=formatted, **kwargs))

        return await self._aask_stream(call_of_text(prompt), ask, can_go_on=True)

    @override
    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        call = call_of_template(self, prompt, prompt_args)
        return self._ask_to_write(call, lambda attempt: attempt.model.predict(prompt, **prompt_args))

    @override
    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        call = call_of_template(self, prompt, prompt_args)
        return await self._aask_to_write(call, lambda attempt: attempt.model.apredict(prompt, **prompt_args))

    @override
    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        call = call_of_template(self, prompt, prompt_args)
        return self._ask_to_stream(call, lambda attempt: attempt.model.stream(prompt, **prompt_args))

    @override
    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        call = call_of_template(self, prompt, prompt_args)
        return await self._aask_to_stream(call, lambda attempt: attempt.model.astream(prompt, **prompt_args))

    @override
    def chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponse:
        def ask(attempt: _Attempt) -> ChatResponse:
            history = attempt.given(chat_history or [])
            return attempt.noted(attempt.model.chat_with_tools(tools, user_msg, history, *args, **kwargs))

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
        async def ask(attempt: _Attempt) -> ChatResponse:
            history = attempt.given(chat_history or [])
            return attempt.noted(await attempt.model.achat_with_tools(tools, user_msg, history, *args, **kwargs))

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
        def ask(attempt: _Attempt) -> ChatResponseGen:
            history = attempt.given(chat_history or [])
            return attempt.noted_stream(attempt.model.stream_chat_with_tools(tools, user_msg, history, *args, **kwargs))

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
        async def ask(attempt: _Attempt) -> ChatResponseAsyncGen:
            history = attempt.given(chat_history or [])
            parts = await attempt.model.astream_chat_with_tools(tools, user_msg, history, *args, **kwargs)
            return attempt.noted_astream(parts)

        return await self._aask_stream(_call_with_tools(user_msg, chat_history), ask)

    @override
    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Read tool calls as the model that gave the response does; if no model is noted in it, as any model does."""
        models = models_with_tools(self._models)
        noted = response.additional_kwargs.get("unirouter", {}).get("model")
        if not models:
            return super().get_tool_calls_from_response(response, error_on_no_tool_call, **kwargs)
        author = models.get(noted) or next(iter(models.values()))
        return author.get_tool_calls_from_response(response, error_on_no_tool_call=error_on_no_tool_call, **kwargs)

    @override
    def structured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> M:
        def ask(attempt: _Attempt) -> M:
            filled: M = attempt.model.structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return filled

        return self._ask_to_write(call_of_template(self, prompt, prompt_args), ask)

    @override
    async def astructured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> M:
        async def ask(attempt: _Attempt) -> M:
            filled: M = await attempt.model.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return filled

        return await self._aask_to_write(call_of_template(self, prompt, prompt_args), ask)

    @override
    def stream_structured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        def ask(attempt: _Attempt) -> Generator[Any, None, None]:
            return attempt.model.stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        return self._ask_to_stream(call_of_template(self, prompt, prompt_args), ask)

    @override
    async def astream_structured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        async def ask(attempt: _Attempt) -> AsyncGenerator[Any, None]:
            return await attempt.model.astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        return await self._aask_to_stream(call_of_template(self, prompt, prompt_args), ask)

    @override
    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers have this form. A RAG prompt is judged by its question here, too."""
        return _StructuredUniRouterLLM(llm=self, output_cls=output_cls, **kwargs)

    @override
    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        msg = "UniRouterLLM prepares no call itself; call chat_with_tools, or a method like it."
        raise NotImplementedError(msg)

    @override
    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [("models", [*self._models]), ("router", self._router), ("cost_weight", self.cost_weight)]

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name: getattr(self, name) for name in ("candidates", "context_window", "judged_by", "sticky")}
        settings = {**settings_of(self), **own}
        del settings["escalate"]
        return _without_models, (self._router, settings)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "UniRouterLLM":
        return self.model_copy()

    def _ask(self, call: Call, ask: Callable[[_Attempt], T], *, checked: bool = True) -> T:
        """Have the chosen model answer, or the next one by the rules of a call."""
        serving = self._serving_of(checked=checked)
        with options_of_call() as options:
            (routed,) = serving.decide([self._request(call, options)])
            routed, answer = serving.call(routed, lambda routed: ask(self._begin(routed)))
        self._remember(routed)
        return answer

    async def _aask(self, call: Call, ask: Callable[[_Attempt], Awaitable[T]], *, checked: bool = True) -> T:
        """Async version of `_ask`."""
        serving = self._serving_of(checked=checked)
        with options_of_call() as options:
            (routed,) = await serving.adecide([self._request(call, options)])
            routed, answer = await serving.acall(routed, lambda routed: ask(self._begin(routed)))
        self._remember(routed)
        return answer

    def _ask_stream(
        self, call: Call, ask: Callable[[_Attempt], Generator[T, None, None]], *, can_go_on: bool = False
    ) -> Generator[T, None, None]:
        """Stream the answer of the chosen model, or of the next one by the rules of a call."""
        serving = self._serving_of()
        with options_of_call() as options:
            (routed,) = serving.decide([self._request(call, options, can_go_on=can_go_on)])
            routed, parts = serving.stream(routed, lambda routed: ask(self._begin(routed)))
        self._remember(routed)
        return parts

    async def _aask_stream(
        self, call: Call, ask: Callable[[_Attempt], Awaitable[AsyncGenerator[T, None]]], *, can_go_on: bool = False
    ) -> AsyncGenerator[T, None]:
        """Async version of `_ask_stream`. Closed early, it closes the model's stream at once."""
        serving = self._serving_of()
        with options_of_call() as options:
            (routed,) = await serving.adecide([self._request(call, options, can_go_on=can_go_on)])
            routed, parts = await serving.astream(routed, lambda routed: ask(self._begin(routed)))
        self._remember(routed)
        return parts

    def _ask_to_write(self, call: Call, ask: Callable[[_Attempt], T], *, checked: bool = True) -> T:
        """`_ask`, where the answer alone does not say whether it was refused."""
        return self._ask(call, lambda attempt: written(attempt.model, lambda: ask(attempt)), checked=checked).value

    async def _aask_to_write(self, call: Call, ask: Callable[[_Attempt], Awaitable[T]], *, checked: bool = True) -> T:
        """Async version of `_ask_to_write`."""
        answer = await self._aask(call, lambda attempt: awritten(attempt.model, lambda: ask(attempt)), checked=checked)
        return answer.value

    def _ask_to_stream(
        self, call: Call, ask: Callable[[_Attempt], Generator[T, None, None]]
    ) -> Generator[T, None, None]:
        """`_ask_stream`, where the parts alone do not say whether the answer was refused or cut."""
        return values(self._ask_stream(call, lambda attempt: written_parts(attempt.note["model"], ask(attempt))))

    async def _aask_to_stream(
        self, call: Call, ask: Callable[[_Attempt], Awaitable[AsyncGenerator[T, None]]]
    ) -> AsyncGenerator[T, None]:
        """Async version of `_ask_to_stream`."""

        async def open_stream(attempt: _Attempt) -> AsyncGenerator[Written[T | None], None]:
            return awritten_parts(attempt.note["model"], await ask(attempt))

        return avalues(await self._aask_stream(call, open_stream))

    def _serving_of(self, *, checked: bool = True) -> Serving:
        if not self._models:
            raise NoModelError(_NO_MODELS)
        return self._serving if checked else replace(self._serving, escalate=None)

    def _request(self, call: Call, options: CallOptions, *, can_go_on: bool = False) -> CallRequest:
        question = call.question(self.judged_by)
        options = options if self.candidates is None else options.within(self.candidates(call.asked))
        return CallRequest(
            question=question,
            needs=call.needs,
            cost_weight=options.cost_weight,
            among=options.among,
            max_error=options.max_error,
            max_cost=options.max_cost,
            kept=self._kept(call, question),
            is_in_tool_loop=call.is_in_tool_loop,
            may_repeat=self.hedge and may_repeat(self._models),
            can_go_on=can_go_on,
        )

    def _kept(self, call: Call, question: str) -> str | None:
        """The model that goes on with a conversation; None if it is decided anew."""
        if call.is_in_tool_loop:  # agents do not hand on all messages of a loop; another process may have begun it
            return self._remembered.get(hash(question)) or call.author
        return call.author if self.sticky == "thread" else None

    def _begin(self, routed: RoutedCall) -> _Attempt:
        """Report that the model of a decision is about to be called."""
        self._remember(routed)
        announce(routed.decision)
        self._lend_callbacks(routed.decision.model, routed.model)
        return _Attempt(cast("FunctionCallingLLM", routed.model), routed.decision.as_dict(), routed)

    def _remember(self, routed: RoutedCall) -> None:
        """Keep which model works on a question, for the next steps of its loop; the oldest question is forgotten."""
        question = hash(routed.request.question)
        self._remembered.pop(question, None)  # to the end, in steps that other threads may come between
        self._remembered[question] = routed.decision.model
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def _lend_callbacks(self, name: str, model: LLM) -> None:
        """Have a model without handlers of its own report to ours, which `Settings.callback_manager` sets."""
        theirs = model.callback_manager
        if theirs is not self.callback_manager and (not theirs.handlers or theirs is self._lent_callbacks.get(name)):
            model.callback_manager = self._lent_callbacks[name] = self.callback_manager


class _StructuredUniRouterLLM(StructuredLLM):
    """Chooses by the question of a template, before it is filled in."""

    llm: UniRouterLLM

    @override
    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        call = call_of_template(self, prompt, prompt_args)
        return self.llm._ask_to_write(  # noqa: SLF001  # one LLM in two classes
            call, lambda attempt: self._around(attempt).predict(prompt, **prompt_args), checked=False
        )

    @override
    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        call = call_of_template(self, prompt, prompt_args)
        return await self.llm._aask_to_write(  # noqa: SLF001  # one LLM in two classes
            call, lambda attempt: self._around(attempt).apredict(prompt, **prompt_args), checked=False
        )

    @override
    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        call = call_of_template(self, prompt, prompt_args)
        return self.llm._ask_to_stream(  # noqa: SLF001  # one LLM in two classes
            call, lambda attempt: self._around(attempt).stream(prompt, **prompt_args)
        )

    @override
    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        call = call_of_template(self, prompt, prompt_args)
        return await self.llm._aask_to_stream(  # noqa: SLF001  # one LLM in two classes
            call, lambda attempt: self._around(attempt).astream(prompt, **prompt_args)
        )

    def _around(self, attempt: _Attempt) -> StructuredLLM:
        """The same form around the chosen model."""
        return StructuredLLM(**{**dict(self), "llm": attempt.model})


def _without_note(message: ChatMessage) -> ChatMessage:
    """The message without the name of its model: some clients send all that a message holds."""
    if "unirouter" not in message.additional_kwargs:
        return message
    kept = {key: value for key, value in message.additional_kwargs.items() if key != "unirouter"}
    return message.model_copy(update={"additional_kwargs": kept})


def _call_with_tools(user_msg: str | ChatMessage | None, history: Sequence[ChatMessage] | None) -> Call:
    asked = [ChatMessage(user_msg)] if isinstance(user_msg, str) else [user_msg] if user_msg else []
    return call_of_messages([*(history or ()), *asked], asked_for={"tool_calling"})


def _without_models(router: UniRouter, settings: dict[str, Any]) -> UniRouterLLM:
    """Make the LLM of a pickle."""
    llm = UniRouterLLM.__new__(UniRouterLLM)
    FunctionCallingLLM.__init__(llm, **settings)
    llm._router, llm._models, llm._health = router, {}, Health()  # noqa: SLF001
    return llm
