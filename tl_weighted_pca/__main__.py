"""`python -m tl_weighted_pca` is the command `tl-weighted-pca`."""

from tl_weighted_pca.cli import app

app()
