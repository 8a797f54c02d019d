"""`python -m tl_weighted_pca` is the command `tl-weighted-pca`."""

from tl_weighted_pca.cli import app
from tl_weighted_pca.cli.processes import leave, world_size

try:
    app()
except SystemExit as end:
    if world_size() == 1:
        raise
    leave(end.code)
