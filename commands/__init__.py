"""The commands of tinyr1.py, each a module with main(argv) -> exit code. Here: what their --help shares."""

import argparse
from typing import Any

from runtime import config


class Help(config.Help):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.option_strings[:1] == [f"--no_{action.dest}"]:
            return f"the same as --{action.dest} False"
        says_nothing = action.default is None or action.default is False or action.default in ("", [])
        return action.help if says_nothing else super()._get_help_string(action)


def make_parser(name: str, usage: str, doc: str | None, groups: Any = None) -> config.Parser:
    """A parser for `tinyr1.py NAME`, whose errors are UserErrors. `usage` is what follows the name; `groups`
    are dataclasses whose fields become options, one heading per class.
    """
    return config.Parser(
        groups,
        prog=f"tinyr1.py {name}",
        usage=f"%(prog)s {usage}",
        description=doc,
        allow_abbrev=False,
        formatter_class=Help,
    )
