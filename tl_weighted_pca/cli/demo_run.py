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
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.fitted.joint import joint_pca
from tl_weighted_pca.fitted.path_gradients import path_metric
from tl_weighted_pca.fitted.trained import optimize_basis
from tl_weighted_pca.models.hook_points import resolve_one
from tl_weighted_pca.moments.second_moment import Moments
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
        article = "the " if best.startswith("trained") else ""
        return (
            f"Keeping {middle} of {width} directions at {curves.hook_point}, {article}{best} leaves the "
            f"lowest loss, {losses[best]:.3f} nats per token ({others}; unablated {curves.baseline:.3f})."
        )

    def save(self, folder: Path, pictures: PictureOptions) -> list[Path]:
        """Write the table, the bases and the picture; the files' paths."""
        folder.mkdir(parents=True, exist_ok=True)
        picture, table = folder / "ablation.png", folder / "ablation.csv"
        self.curves.to_pandas().to_csv(table, index=False)
        files = [picture, table]
        for name, basis in self.bases.items():
            files.append(folder / f"{name.lower().replace(' ', '_').replace(',', '')}.safetensors")
            basis.save(files[-1])
        pictures.draw(picture, self.curves.plot)
        return files


def run_demo(
    model: Any,
    train: Any,
    heldout: Any,
    hook_point: str = "blocks.2.hook_resid_post",
    *,
    every: bool = False,
    steps: int = 100,
    ranks: Sequence[int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Demo:
    """Collect on `train`, ablate on `heldout`, for five bases at one hook point, or for `every` of nine."""
    hook_point = resolve_one(model, hook_point)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    stats = collect(
        model,
        train,
        hook_point,
        objective={"loss": next_token_loss, "fisher": sampled_token_loss(seed=seed)},
        **options,
    )
    loss, fisher = stats["loss"][hook_point], stats["fisher"][hook_point]
    bases = {
        "PCA": pca(loss),
        "weighted PCA": weighted_pca(loss),
        "Fisher-metric PCA": metric_pca(fisher),
    }
    if every:
        bases |= _others(model, train, loss, fisher, batch_size, seed)
    bases["trained basis"] = optimize_basis(
        model, train, bases["Fisher-metric PCA"], steps=steps, seed=seed, progress=progress
    )
    bases["random"] = random_basis(loss, seed=seed)
    return Demo(ablation_curves(model, heldout, bases, hook_point, ranks=ranks, **options), bases)


def _others(
    model: Any, train: Any, loss: Moments, fisher: Moments, batch_size: int, seed: int
) -> dict[str, Basis]:
    """The bases that `--all` adds."""
    hook_point = loss.provenance.hook_point

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
    return {
        "PCA, uncentred": pca(loss, center=False),
        "weighted PCA, uncentred": weighted_pca(loss, center=False),
        "path-metric PCA": metric_pca(loss, metric),
        "joint PCA": joint_pca(fisher, pairs, shrinkage=0.5, steps=200, seed=seed),
    }
