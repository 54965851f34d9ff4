"""`UniRouterLLM`: an LLM that hands every call to one of several LLMs.

It *delegates*, and its methods carry none of LlamaIndex's callbacks, so every call is one pair of events, the chosen
model's, and its tokens are counted once. Templates are delegated before they are filled in: there the question still
stands apart from the retrieved text, and the chosen model's own system prompt and parser are used.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, cast

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
from pydantic import BaseModel, ConfigDict, PrivateAttr
from typing_extensions import override

from unirouter_integrations.checks import check_cost_weight
from unirouter_integrations.embedding import Vectors
from unirouter_integrations.errors import InvalidInputError
from unirouter_integrations.llamaindex.calls import Call, call_of_messages, call_of_template, call_of_text
from unirouter_integrations.llamaindex.capabilities import able, joint_metadata, takes_tools
from unirouter_integrations.llamaindex.events import announce
from unirouter_integrations.llamaindex.models import check_models, register, unregister
from unirouter_integrations.profiles import LLMProfile
from unirouter_integrations.router import UniRouter

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


class _Chosen(NamedTuple):
    """The model of one call, and the decision as it is noted on every answer."""

    model: FunctionCallingLLM  # or any LLM, where no tools are offered
    note: dict[str, Any]

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
    part); a `UniRouteDecisionEvent` comes before the events of the model's call. Errors of the chosen model pass
    through unchanged. A loop of tool calls stays with the model that began it.

    Models that cannot take a call, by their `metadata` (no tools, too short a context), are left out of it; the
    decision holds the reasons. `metadata` is that of all models together, as they are when it is read: its context
    window is the shortest one.

    A copy, also a deep one, has the same models. A pickle has none, for models hold keys; put them back with
    `llm.models.update(...)`.

    Attributes:
        router: The fitted router, with a profile registered for each of the models.
        models: The LLMs by name. The dict is kept, not copied.
        cost_weight: lambda for the calls of this LLM; None for the router's.

    Raises:
        InvalidInputError: From the constructor, if a model has no profile or is no LLM, or a setting is given that only
            the models can have, such as `system_prompt`.

    Example:
        ```python
        Settings.llm = UniRouterLLM(router=router, models={"mini": OpenAI(...), "sonnet": Anthropic(...)})
        index.as_query_engine().query("...")
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    cost_weight: float | None = None
    _router: UniRouter = PrivateAttr()
    _models: dict[str, LLM] = PrivateAttr()
    _recent: OrderedDict[int, str] = PrivateAttr(default_factory=OrderedDict)
    _lent: dict[str, CallbackManager] = PrivateAttr(default_factory=dict)

    def __init__(
        self, *, router: UniRouter, models: dict[str, LLM], cost_weight: float | None = None, **fields: Any
    ) -> None:
        check_cost_weight(cost_weight)
        for setting in _SETTINGS_OF_MODELS:
            if fields.get(setting) is not None:
                msg = f"{setting} has no effect on a UniRouterLLM, which makes no call itself; set it on its models."
                raise InvalidInputError(msg)
        check_models(router, models)
        super().__init__(cost_weight=cost_weight, **fields)
        self._router, self._models = router, models

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
        chosen = self._choose(call_of_messages(messages))
        return chosen.noted(chosen.model.chat(chosen.given(messages), **kwargs))

    @override
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        chosen = await self._achoose(call_of_messages(messages))
        return chosen.noted(await chosen.model.achat(chosen.given(messages), **kwargs))

    @override
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        chosen = self._choose(call_of_messages(messages))
        return chosen.noted_stream(chosen.model.stream_chat(chosen.given(messages), **kwargs))

    @override
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        chosen = await self._achoose(call_of_messages(messages))
        return chosen.noted_astream(await chosen.model.astream_chat(chosen.given(messages), **kwargs))

    @override
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        chosen = self._choose(call_of_text(prompt))
        return chosen.noted(chosen.model.complete(prompt, formatted=formatted, **kwargs))

    @override
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        chosen = await self._achoose(call_of_text(prompt))
        return chosen.noted(await chosen.model.acomplete(prompt, formatted=formatted, **kwargs))

    @override
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        chosen = self._choose(call_of_text(prompt))
        return chosen.noted_stream(chosen.model.stream_complete(prompt, formatted=formatted, **kwargs))

    @override
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        chosen = await self._achoose(call_of_text(prompt))
        return chosen.noted_astream(await chosen.model.astream_complete(prompt, formatted=formatted, **kwargs))

    @override
    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        return self._for(prompt, prompt_args).predict(prompt, **prompt_args)

    @override
    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        return await (await self._afor(prompt, prompt_args)).apredict(prompt, **prompt_args)

    @override
    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        return self._for(prompt, prompt_args).stream(prompt, **prompt_args)

    @override
    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        return await (await self._afor(prompt, prompt_args)).astream(prompt, **prompt_args)

    @override
    def chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponse:
        chosen = self._choose(_call_with_tools(user_msg, chat_history))
        history = chosen.given(chat_history or [])
        return chosen.noted(chosen.model.chat_with_tools(tools, user_msg, history, *args, **kwargs))

    @override
    async def achat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponse:
        chosen = await self._achoose(_call_with_tools(user_msg, chat_history))
        history = chosen.given(chat_history or [])
        return chosen.noted(await chosen.model.achat_with_tools(tools, user_msg, history, *args, **kwargs))

    @override
    def stream_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponseGen:
        chosen = self._choose(_call_with_tools(user_msg, chat_history))
        history = chosen.given(chat_history or [])
        return chosen.noted_stream(chosen.model.stream_chat_with_tools(tools, user_msg, history, *args, **kwargs))

    @override
    async def astream_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ChatResponseAsyncGen:
        chosen = await self._achoose(_call_with_tools(user_msg, chat_history))
        history = chosen.given(chat_history or [])
        parts = await chosen.model.astream_chat_with_tools(tools, user_msg, history, *args, **kwargs)
        return chosen.noted_astream(parts)

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
        filled: M = self._for(prompt, prompt_args).structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        return filled

    @override
    async def astructured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> M:
        model = await self._afor(prompt, prompt_args)
        filled: M = await model.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        return filled

    @override
    def stream_structured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        return self._for(prompt, prompt_args).stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    @override
    async def astream_structured_predict(
        self, output_cls: type[M], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        model = await self._afor(prompt, prompt_args)
        return await model.astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

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
        return _without_models, (self._router, self.cost_weight)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "UniRouterLLM":
        return self.model_copy()

    def _for(self, prompt: BasePromptTemplate, given: Mapping[str, Any]) -> LLM:
        return self._choose(call_of_template(self, prompt, given)).model

    async def _afor(self, prompt: BasePromptTemplate, given: Mapping[str, Any]) -> LLM:
        return (await self._achoose(call_of_template(self, prompt, given))).model

    def _choose(self, call: Call) -> _Chosen:
        return self._chosen(call, self._router.embed([call.question]))

    async def _achoose(self, call: Call) -> _Chosen:
        return self._chosen(call, await self._router.aembed([call.question]))

    def _chosen(self, call: Call, vectors: Vectors) -> _Chosen:
        models = dict(self._models)
        names, excluded = able(models, call)
        pool = self._router.registered(names)
        question = hash(call.question)
        before = self._recent.get(question)
        if call.under_way and before in pool.names:
            pool = pool.among([before])
        (decision,) = self._router.route_many(vectors=vectors, cost_weight=self.cost_weight, among=pool)
        if excluded:
            decision = replace(decision, excluded=excluded)
        self._remember(question, decision.model)
        announce(decision)
        model = cast("FunctionCallingLLM", models[decision.model])
        self._lend_callbacks(decision.model, model)
        return _Chosen(model, decision.as_dict())

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
        return super(_StructuredUniRouterLLM, self._for(prompt, prompt_args)).predict(prompt, **prompt_args)

    @override
    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        chosen = await self._afor(prompt, prompt_args)
        return await super(_StructuredUniRouterLLM, chosen).apredict(prompt, **prompt_args)

    @override
    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        return super(_StructuredUniRouterLLM, self._for(prompt, prompt_args)).stream(prompt, **prompt_args)

    @override
    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        chosen = await self._afor(prompt, prompt_args)
        return await super(_StructuredUniRouterLLM, chosen).astream(prompt, **prompt_args)

    def _for(self, prompt: BasePromptTemplate, given: Mapping[str, Any]) -> "_StructuredUniRouterLLM":
        """This very LLM around the chosen model."""
        return self.model_copy(update={"llm": self.llm._for(prompt, given)})  # noqa: SLF001

    async def _afor(self, prompt: BasePromptTemplate, given: Mapping[str, Any]) -> "_StructuredUniRouterLLM":
        return self.model_copy(update={"llm": await self.llm._afor(prompt, given)})  # noqa: SLF001


def _call_with_tools(user_msg: str | ChatMessage | None, history: Sequence[ChatMessage] | None) -> Call:
    asked = [ChatMessage(user_msg)] if isinstance(user_msg, str) else [user_msg] if user_msg else []
    return call_of_messages([*(history or ()), *asked], with_tools=True)


def _without_models(router: UniRouter, cost_weight: float | None) -> UniRouterLLM:
    """What a pickle becomes."""
    llm = UniRouterLLM.__new__(UniRouterLLM)
    FunctionCallingLLM.__init__(llm, cost_weight=cost_weight)
    llm._router, llm._models = router, {}  # noqa: SLF001
    return llm
