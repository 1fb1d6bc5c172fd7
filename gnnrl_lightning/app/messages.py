"""What Hydra says of a mistake, in the words of someone who wants to know what to type."""

import difflib
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

from hydra.errors import OverrideParseException

from gnnrl_lightning.app.config import SearchConfig, TrainConfig


def in_plain_words(error: Exception) -> str:
    """Hydra's most common messages in our words."""
    text = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return f"there is no setting {unknown[1]}{_nearest(unknown[1])}; --help lists all."
    if option := re.search(
        r"Could not find '(\w+)/([^']+)'.*?Available options in '\w+':(.*?)Config search path", text, re.DOTALL
    ):
        return f"there is no {option[1]}={option[2]}; {option[1]} is one of {', '.join(option[3].split())}."
    if whole := re.search(r"Error merging override (\w+)=(\w+)\s.*is not a subclass of", text, re.DOTALL):
        more = f", e.g. {whole[1]}.enabled={whole[2]}" if whole[2] in ("true", "false") else ""
        return f"{whole[1]}={whole[2]} is not possible; {whole[1]} has settings of its own{more}."
    if bare := re.search(r"Error parsing override '([^'=]+)'\s+missing EQUAL", text):
        return f"{bare[1]} is no setting with a value; write e.g. budget=0.5, without a space."
    if "Ambiguous value for argument" in text:
        several = re.search(r"argument '([^']+)'", text)
        return f"{several[1] if several else 'an argument'} has several values; give them with -m, or one in quotes."
    if (lexed := re.search(r"LexerNoViableAltException: (\S+?)=(\S+)", text)) and "~" not in lexed[2]:
        return f"{lexed[1]}={lexed[2]} must be quoted, e.g. {lexed[1]}='[\"{lexed[2]}\"]' where it is a list."
    if no_list := re.search(r"Error merging override ([^=\s]+)=(\S+).*is not a ListConfig", text, re.DOTALL):
        return f"{no_list[1]}={no_list[2]} must be a list, e.g. {no_list[1]}=[{no_list[2]}]."
    if wrong := re.search(
        r"Value '(.*?)' of type '\w+' could not be converted to (\w+).*full_key: (\S+)", text, re.DOTALL
    ):
        kind = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false"}.get(wrong[2], wrong[2])
        return f"{wrong[3]}={wrong[1]} must be {kind}."
    if isinstance(error, OverrideParseException) and "~" in error.override[1:]:  # in front it is Hydra's own, to delete
        return f"{text} (a path with ~ must be written out, e.g. $HOME/…)"
    return text


def _nearest(name: str) -> str:
    """What may have been meant by a setting that is not there."""
    here, there = (SearchConfig, TrainConfig) if Path(sys.argv[0]).stem == "search" else (TrainConfig, SearchConfig)
    if name in there.__dataclass_fields__:
        return f": it is one of {'train' if here is SearchConfig else 'search'}.py"
    first, _, rest = name.partition(".")
    if rest and (part := here.__dataclass_fields__.get(first)) is not None and is_dataclass(part.type):
        near = difflib.get_close_matches(rest, [each.name for each in fields(part.type)], n=1)
        return f", do you mean {first}.{near[0]}" if near else ""
    near = [] if rest else difflib.get_close_matches(name, here.__dataclass_fields__, n=1)
    return f", do you mean {near[0]}" if near else ""
