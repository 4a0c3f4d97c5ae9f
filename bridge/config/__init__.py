"""The configuration of a node: read from TOML, checked as a whole, handed out frozen."""

from __future__ import annotations

from bridge.config.load import Loaded, from_mapping, load, parse, read, sample
from bridge.config.problems import ConfigError, Problem, without_password
from bridge.config.settings import (
    BrokerConfig,
    CaptureConfig,
    CaptureMode,
    CaptureTransport,
    Config,
    LimitsConfig,
    ListenAddress,
    MapConfig,
    NodeConfig,
    Storage,
)

__all__ = [
    "BrokerConfig",
    "CaptureConfig",
    "CaptureMode",
    "CaptureTransport",
    "Config",
    "ConfigError",
    "LimitsConfig",
    "ListenAddress",
    "Loaded",
    "MapConfig",
    "NodeConfig",
    "Problem",
    "Storage",
    "from_mapping",
    "load",
    "parse",
    "read",
    "sample",
    "without_password",
]
