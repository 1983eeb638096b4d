"""`bamboo shards pack|index|verify|show`: make, check and look at shard folders.

  bamboo shards pack photos/ --out shards/
"""

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..cli.arguments import parse
from ..cli.config import nearest
from ..cli.errors import EXIT_DONE, EXIT_USER, UserError
from .shard_settings import IndexSettings, PackSettings, ShowSettings, VerifySettings

SETTINGS: Mapping[str, type[Any]] = MappingProxyType(
    {"pack": PackSettings, "index": IndexSettings, "verify": VerifySettings, "show": ShowSettings},
)
_LINES = MappingProxyType(
    {
        "pack": "pack a folder, archive or list of images into shards",
        "index": "write index.arrow and dataset.json beside WebDataset tars of others",
        "verify": "find every truncated, swapped or altered shard",
        "show": "counts, class histogram, sizes, a contact sheet",
    }
)
_MODULES = MappingProxyType({"pack": "pack", "index": "indexing", "verify": "verify", "show": "show"})


def usage() -> str:
    """Returns the text of `bamboo shards --help`."""
    lines = "\n".join(f"  {name:<8}{line}" for name, line in _LINES.items())
    return f"usage: bamboo shards COMMAND [--help] …\n\ncommands:\n{lines}\n\nStart here: bamboo shards pack SRC --out DIR\n"


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code; what a command needs is imported only when it is called."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return EXIT_DONE if argv else EXIT_USER
    name, arguments = argv[0], argv[1:]
    if name not in SETTINGS:
        raise UserError(f"no command {name!r}{nearest(name, list(SETTINGS))}; see bamboo shards --help")
    positional = "src" if name == "pack" else "folder"
    doc = inspect.getdoc(SETTINGS[name]) or ""
    config = parse(SETTINGS[name], arguments, prog=f"bamboo shards {name}", doc=doc, positional=[positional])
    code: int = importlib.import_module(f".{_MODULES[name]}", __package__).run(config)
    return code
