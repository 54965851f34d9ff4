"""What a caller sees of an answer while it is awaited as a whole.

LangGraph streams what the models in its nodes say, `astream_events` what those in a chain say: a callback hands it on,
token by token. So an agent, or a node that calls `invoke`, cannot simply have another model begin again.
"""

from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from unirouter_integrations.errors import StreamCutError
from unirouter_integrations.langchain._capabilities import bare_model
from unirouter_integrations.langchain._events import Event, describe_event
from unirouter_integrations.langchain._messages import describe, message_in


def is_seen(config: RunnableConfig) -> bool:
    """Whether somebody sees the tokens of the models that are called with a config."""
    callbacks = config.get("callbacks")
    handlers = callbacks if isinstance(callbacks, list) else getattr(callbacks, "handlers", ())
    return any(hasattr(handler, "tap_output_iter") for handler in handlers)  # as those that stream have it


class Shown(BaseCallbackHandler):
    """Listens to what the models of one call stream.

    Args:
        config: That of the caller.
    """

    run_inline = True  # else each token of an async call waits for a thread

    def __init__(self, config: RunnableConfig) -> None:
        self.is_seen = is_seen(config)
        self._is_streamed = False
        self._tokens: list[str] = []
        self._events: list[str] = []

    def listens_to(self, model: object) -> bool:
        """Whether there may be something to hear: somebody sees the tokens, or the model streams on its own."""
        return self.is_seen or bool(getattr(bare_model(model), "streaming", False))

    def text(self) -> str:
        """What the caller has seen."""
        return "".join(self._events or self._tokens)  # some clients report both

    def check_end(self, answer: object, model: str) -> None:
        """Raise a `StreamCutError` if the message of an answer was streamed, and ended without saying so."""
        said = describe(message_in(answer))
        if self._is_streamed and said.reports_finish and not said.is_finish:
            raise StreamCutError(model)

    @override
    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Nothing; without it LangChain would put the messages into one text for `on_llm_start`."""

    @override
    def on_llm_new_token(self, token: Any, *, chunk: Any = None, tags: list[str] | None = None, **kwargs: Any) -> None:
        self._see(str(token) if chunk is None else chunk.text, self._tokens, tags)

    @override
    def on_stream_event(self, event: Event, *, tags: list[str] | None = None, **kwargs: Any) -> None:
        self._see(describe_event(event).text, self._events, tags)

    def _see(self, text: str, texts: list[str], tags: list[str] | None) -> None:
        self._is_streamed = True
        if text and self.is_seen and "nostream" not in (tags or ()):  # which LangGraph does not show
            texts.append(text)


class Watched(BaseCallbackHandler):
    """Listens to whose model runs end well while one model has a call."""

    run_inline = True

    def __init__(self) -> None:
        self._started: dict[UUID, object] = {}
        self._failed: set[object] = set()
        self._answered: object = None

    def was_replaced(self) -> bool:
        """Whether the model failed, and another component had another one answer: then its decision is none."""
        return bool(self._failed) and self._answered not in self._failed

    @override
    def on_chat_model_start(self, *args: Any, run_id: UUID, metadata: Any = None, **kwargs: Any) -> None:
        self._started[run_id] = (metadata or {}).get("ls_model_name")

    @override
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._failed.add(self._started.get(run_id))

    @override
    def on_llm_end(self, response: object, *, run_id: UUID, **kwargs: Any) -> None:
        self._answered = self._started.get(run_id)
