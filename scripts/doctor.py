"""Check whether a run can start here: see gapo_jax/cli/doctor.py, which needs no installation."""

import pathlib
import runpy

path = pathlib.Path(__file__).parents[1] / "gapo_jax" / "cli" / "doctor.py"
runpy.run_path(str(path), run_name="__main__")
