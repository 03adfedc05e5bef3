"""Whatever a file or the environment holds: a configuration, or a ConfigError."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from gputel.config import Config, effective, masked, problems
from gputel.config.settings import SECTIONS
from gputel.config.values import KEYS
from gputel.errors import ConfigError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEY_NAMES = st.sampled_from(sorted({path[-1] for path in KEYS})) | st.text(max_size=8)
SECTION_NAMES = st.sampled_from([*SECTIONS, "data_dir", "insecure"]) | st.text(max_size=8)
TREES = st.dictionaries(
    SECTION_NAMES | st.integers(),
    VALUES | st.dictionaries(KEY_NAMES, VALUES, max_size=6),
    max_size=5,
)
VARIABLES = st.sampled_from(["GPUTEL_" + "__".join(path).upper() for path in KEYS])


def check(result: tuple[Config | None, list[ConfigError]]) -> None:
    config, errors = result
    assert (config is None) == bool(errors)
    for error in errors:
        assert isinstance(error, ConfigError)
        assert len(str(error)) < 5000
    if config is not None:
        again, none = effective(_plain(masked(config)), "again", {}, {})
        assert not none
        assert again is not None
        assert masked(again) == masked(config)


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(tree))
    return plain


@given(TREES)
def test_any_tree_is_a_config_or_errors(tree: dict[Any, Any]) -> None:
    check(effective(tree, "file", {}, {}))


@given(st.dictionaries(VARIABLES | st.text(max_size=12).map("GPUTEL_".__add__), st.text()))
def test_any_environment_is_a_config_or_errors(environment: dict[str, str]) -> None:
    check(effective({}, "defaults", environment, {}))


@given(st.text())
def test_any_text_is_a_config_or_errors(text: str) -> None:
    for error in problems(text, "file", {}):
        assert isinstance(error, ConfigError)


@given(TREES)
def test_any_tree_as_yaml_text_is_a_config_or_errors(tree: dict[Any, Any]) -> None:
    for error in problems(yaml.safe_dump(tree), "file", {}):
        assert isinstance(error, ConfigError)
