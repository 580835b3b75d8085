"""What the library does in numbers; `python -m benchmarks` runs it, README.md explains it."""

import os

# One thread for BLAS, so that "one core computes" means one core; before numpy is imported.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
