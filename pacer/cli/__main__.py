"""The command ``pacer``, also as ``python -m pacer.cli``: what it needs is loaded as fast as that goes."""

import gc
import os

PLUGINS_OFF = "PYDANTIC_DISABLE_PLUGINS"


def main() -> None:
    """Load the commands, and run the one that is asked for."""
    gc.disable()  # what is loaded stays: the collector would look at all of it, at the end once more, and free nothing
    given = os.environ.get(PLUGINS_OFF)
    os.environ[PLUGINS_OFF] = "__all__"  # Logfire's, for one, takes longer than all that is needed here
    from pacer.cli.main import app

    del os.environ[PLUGINS_OFF]
    if given is not None:
        os.environ[PLUGINS_OFF] = given
    gc.freeze()
    gc.enable()
    app(prog_name="pacer")


if __name__ == "__main__":
    main()
