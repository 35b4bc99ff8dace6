"""``python -m pacer.cli`` is the command ``pacer``."""

from pacer.cli.main import app

app(prog_name="pacer")
