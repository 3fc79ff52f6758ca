"""Methods by name: what they are built from, and what is said of a name or an argument that is wrong."""

from fsdino.base.registry import METHODS, build, method_class
from fsdino.base.storage import describe
from fsdino.methods.sansa.method import Sansa
from tests.small import METHOD_ARGS, SIDE, refuses, small_sam2


def test_the_registry_and_the_classes_agree() -> None:
    assert set(METHOD_ARGS) == set(METHODS), "a small one of every method is tested"
    for name in METHODS:
        kind = method_class(name)
        assert kind.name == name and kind.title and kind.memory_type


def test_files_of_weights_are_not_needed_again(tmp_path) -> None:
    small_sam2(version="2.1").net.save_pretrained(tmp_path / "sam2")
    method = build("sansa", weights=str(tmp_path / "sam2"), img_size=SIDE)
    assert describe(method)["args"] == {"img_size": SIDE, "size": "mini", "version": "2.1"}
    assert not any(module.training for module in method.modules())


def test_errors_say_what_to_do() -> None:
    refuses("unknown method 'matcher'; use one of fsdino, sansa", build, "matcher")
    refuses(r"'all_foreground' does not take these arguments: .*sizes", build, "all_foreground", sizes=3)
    refuses(r"does not know how it was built; make it with fsdino\.base\.registry", describe, Sansa(small_sam2()))
