"""A hook of MkDocs for links from a document to files outside docs/.

On the hosting site such a link opens the file. In the built site it leads to `repo_url`, or is plain text if that is
not set. A link to a file that does not exist is a warning, and so fails `mkdocs build --strict`.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.outside_links")

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>\.\.?/[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    docs = Path(config.docs_dir).resolve()
    folder = (docs / page.file.src_uri).parent

    def replace(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / found["target"]))
        if target.is_relative_to(docs):
            return found[0]
        if not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, found["target"])
        if not config.repo_url:
            return found["text"]
        return f"[{found['text']}]({config.repo_url.rstrip('/')}/blob/main/{target.relative_to(docs.parent)})"

    return LINK.sub(replace, markdown)
