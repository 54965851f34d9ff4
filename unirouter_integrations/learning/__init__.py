"""Learn from production: observations, added up by any number of workers."""

from unirouter_integrations.learning._learner import Learning
from unirouter_integrations.learning._stores import (
    MemoryStatistics,
    RedisStatistics,
    SQLiteStatistics,
    StatisticsStore,
)

__all__ = ["Learning", "MemoryStatistics", "RedisStatistics", "SQLiteStatistics", "StatisticsStore"]
