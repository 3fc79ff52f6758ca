"""The `fsdino` command. Nothing heavy is imported before a command is known, so that help comes at once."""

from __future__ import annotations

import inspect
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

# command -> (module:function, one line of help). Recipe commands take `--config FILE` and overrides.
RECIPE_COMMANDS = {
    "run": ("fsdino.pipeline.commands:run", "a whole recipe: cache, distill, train, evaluate, export"),
    "cache": ("fsdino.pipeline.commands:cache", "write the teacher's and the frozen encoder's maps of a recipe"),
    "distill": ("fsdino.pipeline.commands:distill", "stage 1: the adapter learns SAM's embedding, coarse to fine"),
    "train": ("fsdino.pipeline.commands:train", "stage 2: episodes of base classes"),
    "evaluate": ("fsdino.pipeline.commands:evaluate", "measure a method on a data set; with --config a recipe's run"),
    "export": ("fsdino.pipeline.commands:export", "write a model as safetensors, pt2, onnx, int8; with --config a run"),
}
FUNCTION_COMMANDS = {
    "predict": ("fsdino.predict.command:predict", "masks of your objects in your images, from a few examples"),
    "remember": ("fsdino.predict.command:remember", "save what references show as a small file"),
    "compare": ("fsdino.evaluation.compare:compare", "two evaluations of the same episodes: which method is better"),
    "demo": ("fsdino.demo.serve:demo", "a local page: draw on an example, drop images, see the masks"),
    "data": ("fsdino.data.command:data", "what of a data set is on disk, what is missing, which file to fetch"),
    "episodes": ("fsdino.data.command:episodes", "draw or verify a fixed list of test episodes"),
}
# without --config these recipe commands take options of their own
WITHOUT_RECIPE = {"evaluate": "fsdino.evaluation.command:evaluate", "export": "fsdino.export.command:export_files"}
# what may be given without a name in front of it
POSITIONAL = {
    "remember": ("support",), "data": ("name",), "episodes": ("name",), "evaluate": ("method",), "compare": ("a", "b"),
}  # fmt: skip
EXPECTED_ERRORS = (ValueError, OSError, ImportError, ArgumentError)


def usage() -> str:
    """The overview of commands."""
    rows = [f"  {name:<13} {text}" for name, (_, text) in {**FUNCTION_COMMANDS, **RECIPE_COMMANDS}.items()]
    return "\n".join([
        "usage: fsdino COMMAND [options]    (fsdino COMMAND --help for the options of one)", "", *rows, "",
        "Recipe commands take --config recipes/SYSTEM/NAME.yaml; overrides follow: --seed 1 --trainer.devices 2.",
        "An error is one sentence; FSDINO_DEBUG=1 shows where it came from.",
    ])  # fmt: skip


def resolve(target: str) -> Callable[..., Any]:
    """Import `module:function`."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def calm() -> None:
    """Keep Lightning's remarks on hardware and services out of the way of the progress bars; warnings stay."""
    import logging
    import warnings

    remarks = (
        "GPU available",
        "TPU available",
        "HPU available",
        "Tip:",
        "bfloat16 Automatic",
        "`Trainer.",
        "LOCAL_RANK",
    )
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not any(remark in record.getMessage() for remark in remarks))
    for message in (
        "does not have many workers",
        "exists and is not empty",
        "isinstance.treespec",
        "in eval mode at the",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")


def call(name: str, arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        name: a command.
        arguments: what follows it.

    Returns:
        Exit code.
    """
    has_recipe = any(part == "--config" or part.startswith("--config=") for part in arguments)
    wants_help = any(part in ("-h", "--help") for part in arguments)
    if name in RECIPE_COMMANDS and (has_recipe or name not in WITHOUT_RECIPE):
        if not has_recipe and not wants_help:
            raise ValueError("give a recipe to run: --config recipes/fsdino/tiny.yaml; its header says how long.")
        from fsdino.pipeline.recipe import read_recipe

        calm()
        recipe, trainer_options = read_recipe(arguments)
        result = resolve(RECIPE_COMMANDS[name][0])(recipe, trainer_options)
    else:
        from jsonargparse import auto_cli

        if name in WITHOUT_RECIPE:
            calm()
        function = resolve(WITHOUT_RECIPE.get(name) or FUNCTION_COMMANDS[name][0])
        options: dict[str, Any] = {"as_positional": False, "prog": f"fsdino {name}", "exit_on_error": False}
        result = auto_cli(function, args=_switched(function, _named(name, arguments)), **options)
    return result if isinstance(result, int) else 0


def _named(name: str, arguments: Sequence[str]) -> list[str]:
    """`data check NAME ...`, `compare A B`, `--num-workers 2` as people write them, in the names of the options."""
    rest = list(arguments[1:] if name == "data" and arguments[:1] == ["check"] else arguments)
    named: list[str] = []
    for option in POSITIONAL.get(name, ()):
        if rest and not rest[0].startswith("-"):
            named += [f"--{option}", rest.pop(0)]
    return named + [_underscored(part) for part in rest]


def _switched(function: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """`--overwrite` alone as `--overwrite true`, for the options of a function that are switches."""
    switches = {f"--{name}" for name, kind in inspect.signature(function).parameters.items() if kind.default is False}
    following = [*arguments[1:], "--"]
    return [part for one, after in zip(arguments, following)
            for part in ((one, "true") if one in switches and after.startswith("--") else (one,))]  # fmt: skip


def _underscored(part: str) -> str:
    """`--num-workers=2` as `--num_workers=2`; values and what stands behind a dot stay as they are."""
    if not part.startswith("--"):
        return part
    stem, mark, rest = part[2:].partition("=")
    option, dot, key = stem.partition(".")
    return f"--{option.replace('-', '_')}{dot}{key}{mark}{rest}"


def sentence(error: Exception) -> str:
    """An expected error in one line, as a person would say it."""
    if isinstance(error, ArgumentError):
        text = " ".join(str(error).split())
        text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text).replace("typing.", "")
        text = re.sub(r'^Parser key "([^"]+)": ?', r"--\1: ", text)
        return f"{text.rstrip('.')}; --help lists the options."
    if isinstance(error, OSError) and error.strerror:
        named = f"'{error.filename}': " if error.filename is not None else ""
        return f"{named}{error.strerror[0].lower()}{error.strerror[1:]}."
    return " ".join(line.strip() for line in str(error).splitlines())


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: command line without the program's name; None = the process's.

    Returns:
        Exit code: 0, or 1 or 2 after an error.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from fsdino import __version__

        print(__version__)
        return 0
    if arguments[0] not in {**RECIPE_COMMANDS, **FUNCTION_COMMANDS}:
        print(f"fsdino: there is no command {arguments[0]!r}.\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        return call(arguments[0], arguments[1:])
    except EXPECTED_ERRORS as error:
        if os.environ.get("FSDINO_DEBUG"):
            raise
        print(f"fsdino {arguments[0]}: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nfsdino {arguments[0]}: stopped; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
