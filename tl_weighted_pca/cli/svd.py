"""`svd`: what heads read and write, by singular values."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import typer

from tl_weighted_pca.cli.command import command
from tl_weighted_pca.cli.console import show, tell
from tl_weighted_pca.cli.model_options import ModelOptions
from tl_weighted_pca.cli.options import OutputOptions
from tl_weighted_pca.cli.pictures import PictureOptions
from tl_weighted_pca.cli.tables import table


@command()
def svd(
    *,
    output: OutputOptions,
    source: ModelOptions,
    circuit: Annotated[
        Literal["OV", "QK"],
        typer.Option(help="W_V W_O (what a head moves) or W_Q W_Kᵀ (where it attends)."),
    ] = "OV",
    head: Annotated[
        list[str] | None,
        typer.Option(help="Read this head's directions as tokens: '3.1' is layer 3, head 1."),
    ] = None,
    directions: Annotated[int, typer.Option(min=1, help="Number of directions to read.")] = 4,
    pictures: PictureOptions,
    words: Annotated[int, typer.Option(min=1, help="Tokens shown per direction.")] = 8,
) -> None:
    """Decompose each head's OV or QK circuit: U, S, V_T, S in a table and a picture.

    A direction u that an OV circuit looks for is read by the token embeddings
    nearest to it, the direction v that it answers with through the final norm
    and the unembedding; both sides of QK are read by token embeddings.

    \b
    Examples:
      tl-weighted-pca svd --out ov
      tl-weighted-pca svd --circuit QK --head 3.1 --head 0.2 --out qk
    """
    import pandas as pd
    import torch

    from tl_weighted_pca.factored.svd_switch import use_linalg_svd

    with output.folder() as run:
        model = source.load(run)
        try:
            with use_linalg_svd():
                matrix = getattr(model, circuit)
        except (AttributeError, NotImplementedError) as error:
            raise ValueError(
                f"The {type(model).__name__} has no {circuit} of all heads: its layers have no attention, or "
                "no W_Q, W_K, W_V and W_O for each head (compressed keys and values)."
            ) from error
        with torch.no_grad():
            decomposed = matrix.svd()
        values = decomposed.S.double().cpu()
        chosen = [_head(text, values.shape) for text in head or []]
        show(table(_summary(values), f"Singular values of {circuit}", digits=3))
        rows = [
            {"layer": layer, "head": number, "i": i + 1, "singular_value": value}
            for layer, heads in enumerate(values.tolist())
            for number, of_head in enumerate(heads)
            for i, value in enumerate(of_head)
        ]
        pd.DataFrame(rows).to_csv(run / "singular_values.csv", index=False)
        readings = []
        for layer, number in chosen:
            found = _read(model, circuit, decomposed, layer, number, directions, words)
            show(table(found, f"{circuit} of head {layer}.{number}", digits=3))
            readings.append(found.assign(layer=layer, head=number))
        if readings:
            pd.concat(readings).to_csv(run / "directions.csv", index=False)
        pictures.draw(run / "singular_values.png", partial(_spectra, values))


def _spectra(values: Any, *, interactive: bool = False) -> Any:
    from tl_weighted_pca.plots import singular_value_spectra

    return singular_value_spectra(values, interactive=interactive)


def _head(text: str, shape: tuple[int, ...]) -> tuple[int, int]:
    layers, heads = shape[:2]
    try:
        layer, number = map(int, text.split("."))
    except ValueError as error:
        raise ValueError(
            f"--head is {text!r}; expected LAYER.HEAD, such as '0.0' or '{layers - 1}.{heads - 1}'."
        ) from error
    if not (0 <= layer < layers and 0 <= number < heads):
        raise ValueError(
            f"There is no head {text}: the model has layers 0..{layers - 1} of heads 0..{heads - 1}."
        )
    return layer, number


def _summary(values: Any) -> Any:
    import pandas as pd

    share = values.square().cumsum(-1) / values.square().sum(-1, keepdim=True)
    return pd.DataFrame(
        {
            "head": f"{layer}.{number}",
            "largest": float(values[layer, number, 0]),
            "smallest": float(values[layer, number, -1]),
            "norm": float(values[layer, number].norm()),
            "for 90% of norm²": int((share[layer, number] < 0.9).sum()) + 1,
        }
        for layer in range(values.shape[0])
        for number in range(values.shape[1])
    )


def _read(
    model: Any, circuit: str, found: Any, layer: int, number: int, directions: int, words: int
) -> Any:
    """A head's first directions, both ends of each: `+` answers `+`."""
    import pandas as pd

    from tl_weighted_pca.feature_cards.token_text import TokenText, visible

    text = TokenText(model.tokenizer)
    left, right = found.U[layer, number].mT[:directions], found.V_T[layer, number, :directions]
    embeddings = model.W_E.detach().double().cpu()
    near = left.double().cpu() @ embeddings.mT
    if circuit == "OV":
        names = "looks for", "writes"
        far = _promoted(model, layer, right)
    else:
        names = "from", "to"
        far = right.double().cpu() @ embeddings.mT

    def top(scores: Any) -> str:
        if scores is None:
            return "n/a"
        return " ".join(
            visible(word) for word in text(scores.topk(min(words, len(scores))).indices)
        )

    return pd.DataFrame(
        {
            "i": f"{i + 1}{name}",
            "singular value": float(found.S[layer, number, i]),
            names[0]: top(sign * near[i]),
            names[1]: top(None if far is None else sign * far[i]),
        }
        for i in range(len(left))
        for sign, name in ((1, "+"), (-1, "−"))
    )


def _promoted(model: Any, layer: int, directions: Any) -> Any:
    """The direct logits of what a layer's heads write; None where that is no linear map to the stream."""
    from tl_weighted_pca.feature_cards.direct_logits import direct_logits
    from tl_weighted_pca.models.pushes import scale_to_stream

    W_O = model.blocks[layer].attn.W_O
    scale = scale_to_stream(model, f"blocks.{layer}.attn.hook_z", W_O.flatten(0, -2))
    if scale is None:
        tell(
            f"What heads of layer {layer} write does not reach the residual stream through W_O alone (a norm "
            "lies between), so no tokens can be told.",
            head="Note",
        )
        return None
    return direct_logits(model, f"blocks.{layer}.hook_resid_post", scale * directions)
