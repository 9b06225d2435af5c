"""Griffe extension: what docstrings have of Sphinx's markup is said in Markdown."""

import re
from typing import Any

from griffe import Extension, NameResolutionError, Object

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")
CODE_FOLLOWS = re.compile(r"::$", re.MULTILINE)


class SphinxRoles(Extension):
    """``:class:`X``` becomes a link where the site has what the name means to the docstring's owner, else code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring:
            text = CODE_FOLLOWS.sub(":", obj.docstring.value)
            obj.docstring.value = ROLE.sub(lambda role: _link(obj, *role.groups()), text)


def _link(owner: Object, shortened: str, name: str) -> str:
    try:
        path = owner.resolve(name)
    except NameResolutionError:
        path = name
    shown = name.rpartition(".")[2] if shortened else name
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'
