"""The rules of one call, whichever framework makes it; and the models that take part in calls."""

from unirouter_integrations.serving._health import Health, TrackedCall
from unirouter_integrations.serving._record import Record, RecordedCall, record
from unirouter_integrations.serving._registry import ModelRegistry

__all__ = ["Health", "ModelRegistry", "Record", "RecordedCall", "TrackedCall", "record"]
