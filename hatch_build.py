"""Build hook: `configs/` goes into the wheel as `mtrl/configs`.

Not the static force-include table: that also copies the files on `pip install -e`, where they would go stale.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Configs(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"]["configs"] = "mtrl/configs"
