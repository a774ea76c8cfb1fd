"""The command line: one verb per stage. Parses, calls, prints; no logic. Imports no torch until a verb needs it.

common.py    the app, options that verbs share, tables
stages.py    a recipe, stage by stage: distill, texts, embed, train, sweep, evaluate, export, report, plan
printing.py  what these have to show
searching.py an index and questions to it: index, search
using.py     models as they are: encode, verify, serve, speed, recipes
"""

import errno
import os
import signal
import sys
from typing import Annotated

import typer

import leaf
from leaf.cli import searching, stages, using
from leaf.cli.common import app
from leaf.errors import LeafError, Stopped

__all__ = ["app", "main", "searching", "stages", "using"]


#: Exit code of a program that an interrupt (signal 2) ended.
INTERRUPTED = 128 + 2
#: The extra that brings a package which only some verbs need.
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "sentence_transformers", "pyarrow", "sklearn", "filelock"), "train"),
    **dict.fromkeys(("tomli_w", "jinja2", "pydantic"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "onnx"),
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client"), "serve"),
    **dict.fromkeys(("httpx", "tenacity"), "api"),
    "datasets": "hub",
    "ray": "cluster",
    "psycopg": "postgres",
    **dict.fromkeys(("pymongo", "bson"), "mongodb"),
    "usearch": "search",
    "matplotlib": "plot",
}


def main() -> None:
    """Runs the command line; a caller's mistake is one line on stderr and exit code 2."""
    # Said before anything imports them: their own bars and advice would break up ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Large pages for torch on a Linux CPU: a training step makes and drops hundreds of MB, and pays for every page.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    signal.signal(signal.SIGTERM, _stop)
    try:
        # Standing alone, typer would answer an interrupt and a wrong option itself, in its own way. So it returns the
        # code it would exit with, or raises: an interrupt is 130 in newer releases and Abort in older ones.
        if (code := app(standalone_mode=False)) == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except LeafError as error:
        _fail(str(error))
    except Stopped as stopped:
        print(f"leaf: {stopped}; the same command goes on from here", file=sys.stderr)
        raise SystemExit(0) from None
    except (KeyboardInterrupt, typer.Abort):
        print("leaf: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _fail(f"this needs {package}, which is not installed; pip install 'leaf[{EXTRAS[package]}]'")
    except Exception as error:
        # A wrong option. The class is click's, or that of the copy which newer releases of typer carry.
        usage = getattr(error, "format_message", None)
        if usage is not None:
            if not (message := usage()):
                raise SystemExit(2) from None  # `leaf` alone, which has just printed its help
            verb = getattr(getattr(error, "ctx", None), "info_name", None)
            asked = f"leaf {verb}" if verb in {command.name or "" for command in app.registered_commands} else "leaf"
            _fail(f"{message.rstrip('.')}; see `{asked} --help`")
        # torch and safetensors report a full disk as errors of their own, with the system's words inside.
        full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
        if not full:
            raise
        _fail("the disk is full; free some space and run the same command again (what is finished is kept)")


def _stop(*_: object) -> None:
    """SIGTERM, as spot machines send it: what is finished is on disk, and training (which has a handler) saves."""
    raise Stopped("stopped on SIGTERM")


def _fail(message: str) -> None:
    print("leaf: error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


def _version(value: bool) -> None:
    if value:
        print(f"leaf {leaf.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
