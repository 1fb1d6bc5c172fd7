"""Progress bars in a notebook."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rich


@contextmanager
def visible_bars() -> Iterator[None]:
    """Lets bars be text where a cell's output is captured, as by `%%capture`: widgets cannot be shown there."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    captured = type(getattr(running, "display_pub", None)).__name__ == "CapturingDisplayPublisher"
    console = rich.get_console()
    if not (captured and console.is_jupyter):
        yield
        return
    console.is_jupyter = False
    try:
        yield
    finally:
        console.is_jupyter = True
