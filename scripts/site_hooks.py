"""What the site has besides ``docs/``: pages of the top folder, and names of source files."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TOP = Path(__file__).resolve().parents[1]
PAGES = {"ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"\[([^\]]*)\]\(([^():\s#]+)(#[^()\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top folder."""
    for source, target in PAGES.items():
        text = (TOP / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to pages of the site stay; those to files of the source become their names."""
    by_target = {target: source for source, target in PAGES.items()}
    here = page.file.src_uri
    origin = posixpath.dirname(by_target.get(here, f"docs/{here}"))

    def replaced(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(origin, link))
        inside = (
            PAGES.get(path) or path.removeprefix("docs/") if path != "README.md" else "index.md"
        )
        if files.get_file_from_path(inside) is None:
            return f"{text} (`{path}`)"
        return f"[{text}]({posixpath.relpath(inside, posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(replaced, markdown)
