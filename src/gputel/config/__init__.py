"""The configuration: one YAML file, `GPUTEL_*` variables over it, command line flags over both.

Nothing else in gputel reads the environment.
"""

from typing import TYPE_CHECKING

from gputel.config.listen import Address, from_here, is_loopback, parse_address, parse_addresses
from gputel.config.load import (
    default_data_dir,
    dump,
    effective,
    inherited_environment,
    load,
    masked,
    problems,
    read_environment,
)
from gputel.config.settings import (
    Config,
    MessageQueueSettings,
    ObserveSettings,
    SinkSettings,
)
from gputel.lazy import lazy

if TYPE_CHECKING:
    from gputel.config.yaml_file import read_yaml

__all__ = [
    "Address",
    "Config",
    "MessageQueueSettings",
    "ObserveSettings",
    "SinkSettings",
    "default_data_dir",
    "dump",
    "effective",
    "from_here",
    "inherited_environment",
    "is_loopback",
    "load",
    "masked",
    "parse_address",
    "parse_addresses",
    "problems",
    "read_environment",
    "read_yaml",
]

__getattr__ = lazy(__name__, {"read_yaml": "yaml_file"})
