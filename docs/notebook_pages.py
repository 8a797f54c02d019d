"""A hook of MkDocs: the notebooks are pages too, though their folder lies beside docs/."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files


@event_priority(100)  # ahead of mkdocs-jupyter, which turns them into pages
def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        name = path.relative_to(root).as_posix()
        files.append(
            File(name, str(root), config.site_dir, config.use_directory_urls)
        )
    return files
