"""Settings of the old service."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import SettingsConfigDict

from libs.backend.settings import BackendSettings
from libs.process import Address


class SimpleMcpSettings(BackendSettings):
    """Read from the environment: SIMPLE_MCP_DATABASE and so on."""

    model_config = SettingsConfigDict(env_prefix="SIMPLE_MCP_")

    public: Address = "127.0.0.1:50051"
    internal: Address = "127.0.0.1:50052"
    database: Path
    """Path of the SQLite file: the old program's own file, or the one that `init` creates."""
