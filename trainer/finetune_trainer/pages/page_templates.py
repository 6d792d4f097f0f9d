"""The engine of the pages: it escapes what comes from data, and knows the head and the style that pages share."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined, Template

from finetune_trainer.pages.short_texts import as_sentence, short

SHARED = ("head.jinja", "style.jinja")


def load_template(package: str, name: str, filters: Mapping[str, Callable[..., Any]]) -> Template:
    """Return a template of a package; it may include the shared parts.

    Args:
        filters: of this page, in addition to `short` and `sentence`.
    """
    own = files(package).joinpath(name).read_text("utf-8")
    shared = {part: files(__package__).joinpath(part).read_text("utf-8") for part in SHARED}
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=DictLoader({**shared, name: own}),
    )
    environment.filters.update({"short": short, "sentence": as_sentence, **filters})
    return environment.get_template(name)
