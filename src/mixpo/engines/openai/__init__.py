"""The engine for OpenAI-compatible servers: `wire` is the protocol, `transport` the connections, `probe` what a server can do."""

from mixpo.engines.openai.client import Limits
from mixpo.engines.openai.engine import OpenAIEngine
from mixpo.engines.openai.reach import troubles
from mixpo.engines.openai.server import missing

__all__ = ["Limits", "OpenAIEngine", "missing", "troubles"]
