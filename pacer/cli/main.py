"""The command ``pacer``: to run others that are paced; the runs of a shared store, how each stands, how to end one, and
how to set its limits.

Exit codes: 0 done, 1 refused, not found or (``doctor``) not covered, 2 wrong use, wrong settings, or a store that
cannot be used; ``run`` has that of its command.
The only importer of typer.
"""

from __future__ import annotations

import difflib
import inspect
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

from pacer import settings
from pacer.cli.spelling import plain
from pacer.entry import Answer, Change, Entry, Look
from pacer.errors import PacerError, SettingsError
from pacer.settings import RatesInput, SettingsInput
from pacer.store.opening import limits_of, vault_of
from pacer.store.vault import Away, Forgotten, RunRow, Vault

try:
    import rich  # noqa: F401  # only whether it is there: it takes long, and pacer run does without
    import typer
    from typer.core import TyperGroup

    from pacer.cli import run as runner
    from pacer.cli import view
except ImportError as missing:
    if (missing.name or "").partition(".")[0] not in ("typer", "rich"):
        raise
    raise SystemExit("pacer: the commands need typer and rich: pip install token-pacer[cli]") from None

NOTHING = (
    "memory: is no store to look into, its books are in each process alone: name a shared one with --store or "
    "PACER_STORE, sqlite:PATH or redis://..."
)


class _Commands(TyperGroup):
    """Says of an option that there is not which one is near."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[__name__] = list(args)
        with _hinted(ctx, self.commands["run"], "pacer run "):  # whose options are the ones that are put too early
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _hinted(ctx):
            return super().invoke(ctx)


@contextmanager
def _hinted(ctx: Any, command: Any = None, before: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "option_name") and hasattr(error, "possibilities"):  # typer has had more than one of these
            _hint(error, ctx.meta[__name__], command, before)
        raise


def _hint(error: Any, words: Sequence[str], command: Any, before: str) -> None:
    # Of a word with one dash the error has only the first letter.
    word = next((word for word in words if word.startswith(error.option_name)), error.option_name).partition("=")[0]
    known = (command or error.ctx.command).params
    options = [option for parameter in known for option in (*parameter.opts, *parameter.secondary_opts)]
    near = difflib.get_close_matches(word, options, n=1)
    error.possibilities = None
    error.message = f"{word} is unknown: {f'did you mean {before}{near[0]}?' if near else 'there is no such option'}"


app = typer.Typer(
    cls=_Commands,
    help="Run a command whose model calls are paced; see and set what the runs of a shared store may spend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its frames would show what the variables hold
    rich_markup_mode=None,
)

StoreOption = Annotated[str | None, typer.Option("--store", help="sqlite:PATH, redis://...; else PACER_STORE.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="NAME, or PACER/NAME where both differ.")]
Number = Annotated[str | None, typer.Option(metavar="N|none")]


@app.command()
def runs(store: StoreOption = None, json: JsonOption = False) -> None:
    """List all runs, the one used last at the end."""
    from pacer.cli import screen

    with _errors_told(), _vault(store) as vault:
        views = [view.run_of(row) for row in vault.rows()]
    if json:
        typer.echo(screen.as_json(views))
    elif views:
        screen.console().print(screen.runs(views, time.time()))
    else:
        typer.echo("no runs yet")


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Else PACER_RUN, or the run used last.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show how a run stands: its numbers, its rates, its agents in all processes, and who waits for what."""
    from pacer.cli import screen

    with _errors_told():
        row = _row(store, run)
        with _vault(store, row.pacer) as vault:
            answer = _exchange(vault, [Look(row.name)])
    seen = view.status_of(row, pacer_paused=answer.paused)
    if json:
        typer.echo(screen.as_json(seen))
    else:
        screen.console().print(screen.status(seen, time.time()))


@app.command()
def top(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Else PACER_RUN, or the run used last.")] = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Else PACER_STORE, or that of the command last started by run.")
    ] = None,
) -> None:
    """Watch a run: its agents with their bars, its rates, who waits for what, once a second; q ends it."""
    from pacer.cli import top as watcher  # the other commands do without it

    if not watcher.is_possible():
        _fail("top needs a terminal: elsewhere, use pacer status --json", 2)
    with _errors_told():
        if store is None and _chosen(None).store == "memory:" and (store := watcher.own_store()) is None:
            raise SettingsError("nothing to watch: start a command with pacer run, or name a store with --store")
        row = _row(store, run)
        watcher.watch(_chosen(store, row.pacer), row)


@app.command()
def end(
    run: RunArgument,
    store: StoreOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also while calls are in flight or processes live.")] = False,
) -> None:
    """Print the final numbers of a run and remove its books."""
    from pacer.cli import screen

    with _errors_told():
        row = _row(store, run)
        seen = view.run_of(row)
        if (seen.in_flight or seen.processes) and not force:
            _fail(
                f"run {seen.run} is not over, calls in flight: {seen.in_flight:,}, living processes: "
                f"{seen.processes:,}; wait for them, or end it all the same with --force",
                1,
            )
        screen.console().print(screen.numbers(seen))
        with _vault(store, row.pacer) as vault:
            vault.end(row.name)
    typer.echo(f"ended {plain(seen.run)}")


@app.command("set")
def set_limits(
    run: RunArgument,
    store: StoreOption = None,
    ceiling: Number = None,
    tokens_per_second: Number = None,
    tokens_per_minute: Number = None,
    burst: Number = None,
    input_tokens_per_minute: Number = None,
    output_tokens_per_minute: Number = None,
    requests_per_minute: Number = None,
    pause: Annotated[bool | None, typer.Option("--pause/--resume", help="Let no call go, or let calls go.")] = None,
) -> None:
    """Change limits for all processes at once: the ceiling of the run, the rates of its pacer and all runs of that."""
    asked: RatesInput = {
        "tokens_per_second": tokens_per_second,
        "tokens_per_minute": tokens_per_minute,
        "burst": burst,
        "input_tokens_per_minute": input_tokens_per_minute,
        "output_tokens_per_minute": output_tokens_per_minute,
        "requests_per_minute": requests_per_minute,
    }
    with _errors_told():
        row = _row(store, run)
        changes = [*_of_run(row, ceiling, pause), *_of_rates(row, asked)]
        if not changes:
            raise SettingsError("nothing to set: give --ceiling, a rate, --pause or --resume")
        with _vault(store, row.pacer) as vault:
            _exchange(vault, changes)
    typer.echo(f"set {plain(view.label(row))}")


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each setting."""
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None, typer.Option(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"PACER_{name.upper()}")
            ],
        )
        for name in SettingsInput.__annotations__
    ]
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in [*own, *options]}
    return command


@app.command("run", context_settings={"allow_interspersed_args": False})
@_with_settings
def run_command(
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND", help="The command, after --.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line of status, and nothing at the end.")] = False,
    fail_over_ceiling: Annotated[
        bool, typer.Option("--fail-over-ceiling", help="Exit with 3 if it succeeded and a call was refused.")
    ] = False,
    receipt: Annotated[str | None, typer.Option(metavar="FILE.json", help="Write the receipt there, as JSON.")] = None,
    report: Annotated[str | None, typer.Option(metavar="FILE.html", help="Write a page with pictures there.")] = None,
    otel: Annotated[
        bool, typer.Option("--otel", help="Export traces and metrics as OTEL_* says, unless the program does.")
    ] = False,
    **given: str | None,
) -> None:
    """Run a command; every client of httpx and httpx2 in its Python processes is paced, with no change to them."""
    asked = {name: text for name, text in given.items() if text is not None}
    if not command:
        _fail("there is no command to run: pacer run [OPTIONS] -- python their_agents.py", 2)
    if not quiet and (foreign := runner.foreign(command)):
        _tell([foreign])
    with _errors_told():
        outcome = runner.run(
            command,
            asked,
            fails_over_ceiling=fail_over_ceiling,
            exports=otel,
            receipt=receipt,
            report=report,
            shows_line=not quiet,
        )
    _tell([*(() if quiet else outcome.lines), *outcome.errors])
    raise typer.Exit(outcome.code)


def _tell(lines: Sequence[str]) -> None:
    """Say it if anybody listens: the exit code is that of the command, whatever has become of stderr."""
    try:
        for line in lines:
            typer.echo(f"pacer: {plain(line)}", err=True)
    except OSError:  # what is left in its buffer would be tried once more at the end, and change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), runner.STDERR)


@app.command()
def doctor(store: StoreOption = None, json: JsonOption = False) -> None:
    """Tell which SDKs of this environment are covered, and whether settings, store and Pythons are as they must be."""
    from pacer.cli import diagnosis, screen  # what they look at takes a while to import
    from pacer.cli import doctor as examination

    report = examination.examine(store)
    if json:
        typer.echo(screen.as_json(report))
    else:
        screen.console().print(diagnosis.shown(report))
    raise typer.Exit(report.code)


def _of_run(row: RunRow, ceiling: str | None, pause: bool | None) -> Iterator[Change]:
    if ceiling is not None:
        yield Change(row.name, ceiling=settings.explicit(ceiling=_given(ceiling)).ceiling)
    if pause is not None:
        yield Change(row.name, paused=pause)


def _of_rates(row: RunRow, asked: RatesInput) -> Iterator[Change]:
    given = {name: _given(text) for name, text in asked.items() if isinstance(text, str)}
    if not given:
        return
    there: dict[str, Any] = {limit.setting: limit.amount for limit in row.limits}
    for limit in row.limits:
        if limit.kind == "tokens":
            there["burst"] = limit.burst
    yield Change(limits=limits_of(settings.changed_rates(settings.explicit(**there), **given)))


def _given(text: str) -> str | None:
    return None if text == "none" else text


# -------------------------------------------------------------------- the store


@contextmanager
def _vault(store: str | None, pacer: str | None = None) -> Iterator[Vault]:
    chosen = _chosen(store, pacer)
    if chosen.store == "memory:":
        raise SettingsError(NOTHING)
    vault = vault_of(chosen)
    try:
        yield vault
    finally:
        vault.close()


def _chosen(store: str | None, pacer: str | None = None) -> settings.Settings:
    given: SettingsInput = {}
    if store is not None:
        given["store"] = store
    if pacer is not None:
        given["run"] = pacer
    return settings.load(**given)


def _row(store: str | None, asked: str | None) -> RunRow:
    """The run that is asked for, else that of PACER_RUN, else the one used last. Raises: UnknownRun."""
    with _vault(store) as vault:
        rows = vault.rows()
    chosen = _chosen(store)
    if asked is None and "run" in chosen.model_fields_set:
        asked = chosen.run
    if asked is not None:
        return view.find(rows, asked)
    if not rows:
        raise view.UnknownRun("there are no runs yet")
    return max(rows, key=lambda row: (row.used_at, row.pacer == row.name))  # a process uses all its runs together


def _exchange(vault: Vault, entries: Sequence[Entry]) -> Answer:
    """Write entries, and be gone again; a run that is not there is not made."""
    answer = vault.exchange(entries)
    with suppress(Away):  # what is left of us there lapses
        vault.leave()
    return answer


# -------------------------------------------------------------------- errors


@contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except view.UnknownRun as error:
        _fail(str(error), 1)
    except Forgotten as error:
        _fail(str(error), 1 if error.run else 2)
    except (PacerError, Away) as error:
        _fail(str(error), 2)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"pacer: {plain(message)}", err=True)
    raise typer.Exit(code)
