"""What a study is called, and so which folder it lives in: one name per config and data source."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tokencutseg.config import STAGES, Config, configure


def differences(config: Config) -> dict[str, Any]:
    """What the user changed: ``stage.key`` → value (JSON types), wherever `config` departs from its preset and recipe.

    ``configure(config.preset, config.recipe, config.seed, differences(config)) == config``.
    """
    values, plain = config.to_dict(), configure(config.preset, config.recipe, config.seed).to_dict()
    return {
        f"{stage}.{key}": value
        for stage in STAGES
        for key, value in values[stage].items()
        if value != plain[stage][key]
    }


def study_name(config: Config, source_name: str) -> str:
    """`preset-source` (`DataSource.study_name`), then only what departs from the default: recipe, seed, and a short hash of changed settings.

    >>> study_name(configure("quick"), "synthetic")
    'quick-synthetic'
    """
    name = f"{config.preset}-{source_name}"
    if config.recipe != "revised":
        name += f"-{config.recipe}"
    if config.seed:
        name += f"-seed{config.seed}"
    if changed := differences(config):
        name += f"-set-{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]}"
    return name
