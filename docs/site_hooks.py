"""A hook of MkDocs. The pages are read in two places, on a code host and on the site.

Links that lead out of docs/ lead to the repository, where such a file exists: on the site there is no `../recipes`.
What is folded away in <details> is Markdown there too.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any


LOG = logging.getLogger("mkdocs.plugins.site_hooks")
_LINK = re.compile(r"(?<=\]\()(?!https?:|#|/)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page for the site; a link that leads nowhere is a warning, which `--strict` makes an error."""
    docs, root = Path(config.docs_dir), Path(config.config_file_path).parent

    def rewritten(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(docs.name, posixpath.dirname(page.file.src_uri), match[1]))
        if place.startswith(f"{docs.name}/") and not place.endswith(".py"):
            return match[0]
        if not (root / place).exists():
            LOG.warning("%s links to %s, which the repository does not have.", page.file.src_uri, place)
        kind = "tree" if (root / place).is_dir() else "blob"
        return f"{config.extra['repository']}/{kind}/main/{place}{match[2] or ''}"

    return _LINK.sub(rewritten, markdown).replace("<details>", '<details markdown="1">')
