"""The commands of tinyr1.py, each a module with main(argv) -> exit code. Here: what their --help shares."""

from typing import Any

from runtime import config


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
        formatter_class=config.Help,
    )
