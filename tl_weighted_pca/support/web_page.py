"""Pages that need nothing from outside themselves: one style, and one rule of what they may load."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup


def templates(room: str) -> jinja2.Environment:
    """The templates of a room, such as "tl_weighted_pca.runs"; those of pages extend `base.html`."""
    loaders = [
        jinja2.PackageLoader(each, "templates") for each in (room, "tl_weighted_pca.support")
    ]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def rendered(
    environment: jinja2.Environment,
    template: str,
    *,
    script: str = "",
    digests: Sequence[str] = (),
    framed: bool = False,
    **content: Any,
) -> str:
    """A page with its style, `page.css` of the room or of all, and its script inside.

    Args:
        environment: from `templates`.
        template: of the page.
        script: the name of its script's template, if it has one.
        digests: of other scripts that may run, in frames within it.
        framed: for an iframe's `srcdoc`, whose links would otherwise lead to the page around it.
        content: of the template.
    """
    code = environment.get_template(script).render() if script else ""
    style = environment.get_template("page.css").render()
    return environment.get_template(template).render(
        script=Markup(code),  # trusted, as the style is: files of this package
        style=Markup(style),
        scripts=[*([script_digest(code)] if code else []), *digests],
        framed=framed,
        **content,
    )


def script_digest(script: str) -> str:
    """As a content security policy names the one script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
