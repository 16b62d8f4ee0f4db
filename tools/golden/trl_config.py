"""The settings of TRL's `GRPOConfig` with their defaults: what a file written for TRL may name.

`grpo` are the fields of TRL, those it shares with transformers' `TrainingArguments` among `inherited`, with the
defaults that TRL gives them. They are the dataclass's, before `__post_init__` derives any. Writes
`golden/cli/trl_grpo_config.json`.
"""

from __future__ import annotations

import argparse
import dataclasses

import transformers
import trl
from transformers import TrainingArguments
from trl import GRPOConfig

from common import GOLDEN, write_json


def default(field: dataclasses.Field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    fields = {field.name: default(field) for field in dataclasses.fields(GRPOConfig)}
    value = {
        "command": "python tools/golden/trl_config.py",
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__},
        "grpo": {name: value for name, value in fields.items() if name not in inherited},
        "inherited": {name: value for name, value in fields.items() if name in inherited},
    }
    write_json(GOLDEN / "cli" / "trl_grpo_config.json", value)
    print({part: len(value[part]) for part in ("grpo", "inherited")})


if __name__ == "__main__":
    main()
