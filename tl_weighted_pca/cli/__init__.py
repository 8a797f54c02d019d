"""The command line, `tl-weighted-pca`: a file a command, each a thin layer over the package."""

from tl_weighted_pca.cli.app import app

__all__ = ["app"]
