"""The main job, end to end, on the embedded model: which basis keeps the model's loss low for longest?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_weighted_pca.ablation.curves import AblationCurves
from tl_weighted_pca.ablation.node_ablation import ablation_curves
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.principal_components import metric_pca, pca, random_basis, weighted_pca
from tl_weighted_pca.fitted.joint import joint_pca
from tl_weighted_pca.fitted.path_gradients import path_metric
from tl_weighted_pca.objectives.losses import next_token_loss, sampled_token_loss
from tl_weighted_pca.streaming.one_pass import collect
from tl_weighted_pca.streaming.pairs import stream_pairs


@dataclass(frozen=True)
class Demo:
    """What the demo found."""

    curves: AblationCurves
    bases: dict[str, Basis]

    def sentence(self) -> str:
        """What the table shows, in one sentence."""
        curves, width = self.curves, self.curves.width
        # Three eighths of the directions: with more, any basis serves, and with fewer none does.
        middle = min(curves.ranks, key=lambda k: abs(k - 3 * width / 8))
        at = curves.ranks.index(middle)
        losses = {name: scores[at] for name, scores in curves.scores.items()}
        best = min(losses, key=lambda name: losses[name])
        others = ", ".join(
            f"{name} {losses[name]:.3f}"
            for name in ("PCA", "weighted PCA", "random")
            if name != best
        )
        return (
            f"Keeping {middle} of {width} directions at {curves.hook_point}, {best} leaves the lowest "
            f"loss, {losses[best]:.3f} nats per token ({others}; unablated {curves.baseline:.3f})."
        )

    def save(self, folder: Path) -> list[Path]:
        """Write the picture, the table and the bases; the files' paths."""
        folder.mkdir(parents=True, exist_ok=True)
        picture, table = folder / "ablation.png", folder / "ablation.csv"
        self.curves.plot().savefig(picture)
        self.curves.to_pandas().to_csv(table, index=False)
        files = [picture, table]
        for name, basis in self.bases.items():
            files.append(folder / f"{name.lower().replace(' ', '_').replace(',', '')}.safetensors")
            basis.save(files[-1])
        return files


def run_demo(
    model: Any,
    train: Any,
    heldout: Any,
    hook_point: str = "blocks.2.hook_resid_post",
    *,
    ranks: Sequence[int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Demo:
    """Collect on `train`, ablate on `heldout`, for eight bases at one hook point.

    Args:
        model: a language model.
        train: a `datasets.Dataset` to make the bases from.
        heldout: data to score them on.
        hook_point: where.
        ranks: how many components to keep; nine by default, from none to all.
        batch_size: sequences a batch.
        seed: of the sampled labels and the random basis.
        progress: show progress bars.
    """
    stats = collect(
        model,
        train,
        hook_point,
        objective={"loss": next_token_loss, "fisher": sampled_token_loss(seed=seed)},
        batch_size=batch_size,
        progress=progress,
    )
    loss, fisher = stats["loss"][hook_point], stats["fisher"][hook_point]

    def first(n: int) -> Any:
        return train.select(range(min(n, len(train))))

    metric = path_metric(
        model, first(200), hook_point, pca(loss), batch_size=batch_size, progress=False
    )
    pairs = stream_pairs(
        model,
        first(600),
        hook_point,
        objective=sampled_token_loss(seed=seed),
        batch_size=batch_size,
    )
    bases = {
        "PCA": pca(loss),
        "PCA, uncentred": pca(loss, center=False),
        "weighted PCA": weighted_pca(loss),
        "weighted PCA, uncentred": weighted_pca(loss, center=False),
        "Fisher-metric PCA": metric_pca(fisher),
        "path-metric PCA": metric_pca(loss, metric),
        "joint PCA": joint_pca(fisher, pairs, shrinkage=0.5, steps=200, seed=seed),
        "random": random_basis(loss, seed=seed),
    }
    curves = ablation_curves(
        model, heldout, bases, hook_point, ranks=ranks, batch_size=batch_size, progress=progress
    )
    return Demo(curves, bases)
