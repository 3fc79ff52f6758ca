"""CVAT: a function that its command line and its agents run, and a task of which a part is drawn (`task`).

`cvat-cli task auto-annotate 12 --function-module fsdino.annotate.cvat -p support=str:refs` annotates a task with it,
and `cvat-cli function create-native` makes it a model that anybody can choose in CVAT while an agent runs it.
"""

# Before the files of this folder, which import it as they need it.
try:
    import cvat_sdk  # noqa: F401
except ImportError as error:
    raise ImportError(f"CVAT needs {error.name}; install it with `pip install fsdino[annotate]`.") from error

from fsdino.annotate.cvat.function import Function, create

__all__ = ["Function", "create"]
