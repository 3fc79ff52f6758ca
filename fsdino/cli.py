"""The `fsdino` command. Nothing heavy is imported before a command is known, so that help comes at once."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
import signal
import sys
import threading
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, get_type_hints

# Command -> what it calls, what may be given without a name in front of it, and one line of help. Named by text and
# not imported, so that help comes before torch.
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "run": ("fsdino.pipeline.command:run", (), "a whole recipe: cache, distill, train, evaluate, export; or --stages"),
    "plan": ("fsdino.pipeline.plan:plan", (), "what a recipe needs before it starts: disk, memory, downloads, hours"),
    "predict": ("fsdino.predict.command:predict", (), "masks of your objects in your images, from a few examples"),
    "remember": ("fsdino.predict.command:remember", ("support",), "save what references show as a small file"),
    "adapt": ("fsdino.predict.adapt:adapt", ("images",), "fit an encoder by name to your images; no labels needed"),
    "evaluate": ("fsdino.evaluation.command:evaluate", ("method",), "measure a method on a data set"),
    "compare": ("fsdino.evaluation.compare:compare", ("a", "b"), "two evaluations of one list: which is better"),
    "export": ("fsdino.export.command:export_files", ("model",), "write a model as safetensors, pt2, onnx, fp16, int8"),
    "demo": ("fsdino.demo.serve:demo", (), "a local page: draw on an example, drop images, see the masks"),
    "models": ("fsdino.pipeline.models:models", (), "every model that has a name, and which are on this disk"),
    "label-studio": ("fsdino.annotate.label_studio.command:label_studio", (), "masks where Label Studio asks for them"),
    "pre-annotate": (
        "fsdino.annotate.label_studio.command:pre_annotate",
        ("project",),
        "masks for a whole project of Label Studio, before anybody opens it",
    ),
    "cvat": ("fsdino.annotate.cvat.task:cvat", ("task",), "masks for the frames of a CVAT task that have none"),
    "serve": ("fsdino.serve.command:serve", (), "an HTTP service: references in, memories kept, images in, masks out"),
    "data": ("fsdino.data.command:data", ("name",), "what of a data set is on disk or missing; --download"),
    "episodes": ("fsdino.data.command:episodes", ("name",), "draw or verify a fixed list of test episodes"),
}
EXPECTED_ERRORS = (ValueError, OSError, ImportError, ArgumentError)


def usage() -> str:
    """The overview of commands."""
    rows = [f"  {name:<13} {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fsdino COMMAND [options]    (fsdino COMMAND --help for the options of one)",
            "",
            *rows,
            "",
            "`fsdino run` takes --config NAME or FILE.yaml; overrides follow: --seed 1 --trainer.devices 2.",
            "An error is one sentence; FSDINO_DEBUG=1 shows where it came from.",
        ]
    )


def resolve(target: str) -> Callable[..., Any]:
    """Import `module:function`."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def calm() -> None:
    """Keep Lightning's remarks on hardware and services out of the way of the progress bars; warnings stay."""
    # The first is said of GPU, TPU and HPU.
    remarks = ("PU available", "Tip:", "bfloat16 Automatic", "`Trainer.", "LOCAL_RANK")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not any(remark in record.getMessage() for remark in remarks))
    known = "does not have many workers|exists and is not empty|isinstance.treespec|in eval mode at the"
    warnings.filterwarnings("ignore", message=f".*({known})")


def call(name: str, arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    function = resolve(COMMANDS[name][0])
    calm()
    if name in ("run", "plan"):
        # A recipe's parser is Lightning's, which knows every flag of its Trainer.
        result = function(arguments)
    else:
        result = function(**options(function, name, named(name, arguments)))
    return result if isinstance(result, int) else 0


def parser_of(function: Callable[..., Any], name: str) -> tuple[Any, dict[str, Any]]:
    """A command's parser, and its function's parameters that are dataclasses, whose fields are options of their own."""
    from jsonargparse import ArgumentParser  # not for --help, which it would slow down

    kinds: dict[str, Any] = {key: kind for key, kind in get_type_hints(function).items() if is_dataclass(kind)}
    parser = ArgumentParser(prog=f"fsdino {name}", exit_on_error=False)
    for kind in kinds.values():
        parser.add_class_arguments(kind, instantiate=False)
    parser.add_function_arguments(function, skip=set(kinds))
    return parser, kinds


def options(function: Callable[..., Any], name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What a command's function is called with."""
    parser, kinds = parser_of(function, name)
    # People write a switch without its value, which jsonargparse asks for.
    switches = {f"--{key}" for key, value in parser.get_defaults().as_dict().items() if value is False}
    values = dict(parser.parse_args(switched(switches, arguments)).items())
    parts = {key: kind(**{one.name: values.pop(one.name) for one in fields(kind)}) for key, kind in kinds.items()}
    return values | parts


def named(name: str, arguments: Sequence[str]) -> list[str]:
    """`data check NAME ...`, `compare A B`, `--num-workers 2` as people write them, in the names of the options."""
    rest = list(arguments[1:] if name == "data" and arguments[:1] == ["check"] else arguments)
    given: list[str] = []
    for option in COMMANDS[name][1]:
        if rest and not rest[0].startswith("-"):
            given += [f"--{option}", rest.pop(0)]
    # Values, and what stands behind a dot (--options.img-size), stay as they are
    return given + [re.sub(r"^--[\w-]+", lambda found: "--" + found[0][2:].replace("-", "_"), part) for part in rest]


def switched(switches: Set[str], arguments: Sequence[str]) -> list[str]:
    """`--overwrite` alone as `--overwrite true`."""
    whole: list[str] = []
    for part, following in zip(arguments, [*arguments[1:], "--"]):
        whole += [part, "true"] if part in switches and following.startswith("--") else [part]
    return whole


def sentence(error: Exception) -> str:
    """An expected error in one line, as a person would say it."""
    if isinstance(error, ArgumentError):
        text = " ".join(str(error).split())
        text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text).replace("typing.", "")
        text = re.sub(r'^Parser key "([^"]+)": ?', r"--\1: ", text)
        text = re.sub(
            r"Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: ", r"expected one of \1, got ", text
        )
        return f"{text.rstrip('.')}; --help lists the options."
    if isinstance(error, OSError) and error.strerror:
        # repr: a name may hold the end of a line.
        named = f"{str(error.filename)!r}: " if error.filename is not None else ""
        return f"{named}{error.strerror[0].lower()}{error.strerror[1:]}."
    if isinstance(error, UnicodeError):
        return f"a text cannot be written or read ({' '.join(str(error).split())}); give it in UTF-8."
    return " ".join(line.strip() for line in str(error).splitlines())


@contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Send an interrupt again that came while Python tidied up an object, where it drops whatever is raised."""
    before, sent = sys.unraisablehook, list[threading.Timer]()

    def again(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            return before(dropped)
        # A moment later and from another thread: raised here, it would be dropped like the first one.
        main_thread = threading.main_thread().ident
        sent.append(threading.Timer(0.02, signal.pthread_kill, (main_thread, signal.SIGTERM)))
        sent[-1].start()

    sys.unraisablehook = again
    try:
        yield
        for timer in sent:  # one that is still to come is for this command
            timer.join()
    finally:
        sys.unraisablehook = before


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; `arguments` is the command line without the program's name. The exit code is 0, 1 or 2."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from fsdino import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"fsdino: there is no command {arguments[0]!r}.\n\n{usage()}", file=sys.stderr)
        return 2
    # Python looks for cycles once more when it ends: seconds for the objects of a training, long after the last word.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    # What ends a container's job: the same word as of a person at the keys. Other threads may not set it.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with no_interrupt_lost():
            return call(arguments[0], arguments[1:])
    except EXPECTED_ERRORS as error:
        if os.environ.get("FSDINO_DEBUG"):
            raise
        print(f"fsdino {arguments[0]}: {sentence(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning takes the word itself, and then exits.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print(f"\nfsdino {arguments[0]}: stopped; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
