"""A page of the documents, a part of which a script writes."""

from pathlib import Path


def write_between_marks(page: Path, name: str, lines: list[str]) -> None:
    """Put lines in the place of what is between `<!-- name -->` and `<!-- end of name -->`."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, rest = page.read_text().split(first)
    _, tail = rest.split(last)
    page.write_text("\n".join([f"{head}{first}", "", *lines, "", f"{last}{tail}"]))
