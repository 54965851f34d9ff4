"""Options for the calls inside a block: LlamaIndex has no configuration that a call hands on to its LLM."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from unirouter_integrations.serving._options import CallOptions

_NONE = CallOptions()
_current: ContextVar[CallOptions] = ContextVar("unirouter_call_options", default=_NONE)


@contextmanager
def call_options(
    *,
    cost_weight: float | None = None,
    among: Iterable[str] | None = None,
    model: str | None = None,
    max_error: float | None = None,
    max_cost: float | None = None,
) -> Iterator[None]:
    """Set the options of all routed calls inside the block: in this thread, or in this task and those it starts.

    Blocks can be nested: what the inner one leaves out is that of the outer one.

    Args:
        cost_weight: lambda of these calls; None for that of the LLM, or else the router's.
        among: The names of the candidates; None for all.
        model: The name of the model that takes them; no other one takes over if it fails.
        max_error: Only candidates take part that are expected to err at most so much on the question, from 0 to 1, if
            there are any; None for all.
        max_cost: What each call may be expected to cost, all models together, in the unit of the profiles; None for the
            setting of the LLM.

    Raises:
        InvalidInputError: If an option is out of range.

    Example:
        ```python
        with call_options(cost_weight=0.5):
            response = query_engine.query("Who invented it?")
        ```
    """
    given = CallOptions.of(cost_weight=cost_weight, among=among, model=model, max_error=max_error, max_cost=max_cost)
    chosen = {name: value for name, value in given._asdict().items() if value is not None}
    with _set(_current.get()._replace(**chosen)):
        yield


def current_options() -> CallOptions:
    """The options of the surrounding block."""
    return _current.get()


@contextmanager
def options_of_call() -> Iterator[CallOptions]:
    """The options of one call, which is made inside the block.

    Its candidates are dropped there: a router among the models, or a judge of answers, has other models.
    """
    options = _current.get()
    with _set(options._replace(among=None)):
        yield options


@contextmanager
def _set(options: CallOptions) -> Iterator[None]:
    token = _current.set(options)
    try:
        yield
    finally:
        _current.reset(token)
