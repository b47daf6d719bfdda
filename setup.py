"""Ships configs/ inside the wheel, as gapo_jax/configs. Everything else stands in pyproject.toml.

The experiments lie beside the package because people read and copy them, but `gapo-jax train
--config gapo_tiny` has to find them without a checkout.
"""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies configs/ into the package that is built."""

    def run(self):
        """Build the package, then add the configurations."""
        super().run()
        if self.editable_mode:
            return
        target = pathlib.Path(self.build_lib, "gapo_jax", "configs")
        for path in pathlib.Path(__file__).parent.glob("configs/**/*.py"):
            folder = target / path.parent.relative_to(pathlib.Path(__file__).parent / "configs")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)


setup(cmdclass={"build_py": BuildWithConfigs})
