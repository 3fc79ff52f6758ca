"""Metadata lives in setup.cfg; here is what it cannot say."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithRecipes(build_py):
    """Puts the recipes into the wheel, below the package, where `fsdino run --config NAME` finds them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable install reads them from the checkout
            source = Path(__file__).parent / "recipes"
            shutil.copytree(source, Path(self.build_lib) / "fsdino" / "recipes", dirs_exist_ok=True)


setup(cmdclass={"build_py": WithRecipes})
