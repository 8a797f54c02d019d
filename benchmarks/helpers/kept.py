"""Results of a long benchmark, kept in a folder, so that a run that was cut off goes on where it was."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tl_weighted_pca as wpca


class Kept:
    """Bases, collections and curves by name, made once; and the seconds that each took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._times = folder / "seconds.json"
        self.seconds: dict[str, float] = (
            json.loads(self._times.read_text()) if self._times.exists() else {}
        )

    def basis(self, name: str, make: Callable[[], wpca.Basis]) -> wpca.Basis:
        """The basis of that name."""
        return self._made(name, make, wpca.Basis.load, lambda basis, file: basis.save(file))

    def collection(self, name: str, make: Callable[[], wpca.Collection]) -> wpca.Collection:
        """The moments of that name."""
        return self._made(name, make, wpca.Collection.load, lambda stats, file: stats.save(file))

    def moments(self, name: str, model: Any, stories: Any, hook_point: str) -> wpca.Moments:
        """Moments at one hook point, for PCA and for Fisher-metric PCA."""
        return self.collection(
            name,
            lambda: wpca.collect(
                model, stories, hook_point, objective=wpca.sampled_token_loss(2),
                statistics=["activation", "gradient"], batch_size=32, progress=False,
            ),
        )[hook_point]  # fmt: skip

    def curves(self, name: str, make: Callable[[], wpca.AblationCurves]) -> wpca.AblationCurves:
        """The ablation curves of that name."""

        def load(file: Path) -> wpca.AblationCurves:
            return wpca.AblationCurves(**torch.load(file))

        # As a dict: other versions of the class have other fields.
        return self._made(name, make, load, lambda curves, file: torch.save(vars(curves), file))

    def _made(self, name: str, make: Any, load: Any, save: Any) -> Any:
        file = self.folder / f"{name.replace(' ', '_').replace(',', '')}.kept"
        if file.exists():
            return load(file)
        start = time.perf_counter()
        made = make()
        self.seconds[name] = time.perf_counter() - start
        partial = file.with_suffix(".partial")
        save(made, partial)
        partial.rename(file)
        self._times.write_text(json.dumps(self.seconds, indent=1))
        print(f"{self.folder.name}: {name}, {self.seconds[name]:.0f} s", flush=True)
        return made
