"""The slow, obvious formulas that tests of several rooms hold the package to."""

import torch
from fancy_einsum import einsum


def relative(a, b):
    """‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())


def cosine(a, b):
    """⟨a, b⟩ / (‖a‖ ‖b‖), of vectors or of matrices."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def rotation(d, seed, *batch):
    """Orthogonal matrices [*batch, d, d], uniform over all of them; of a seed, or the next of a generator."""
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    q, r = torch.linalg.qr(torch.randn(*batch, d, d, generator=generator, dtype=torch.float64))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def outer_products(rows):
    """Σ g gᵀ over all rows g."""
    return einsum("row i, row j -> i j", rows.flatten(0, -2), rows.flatten(0, -2))


def row_metric(name, F, g):
    """M(x) [batch, s, t] of a row metric's name, or of a callable."""
    if name == "identity":
        return torch.eye(F.shape[1], dtype=F.dtype).repeat(len(F), 1, 1)
    if name == "gradient":
        return einsum("batch s k, batch t k -> batch s t", g, g)
    if name == "diagonal":
        return torch.diag_embed(einsum("batch s k, batch s k -> batch s", g, g))
    return name(F, g)


def second_moment(F, M, mu=0.0):
    """G(μ) = Σ_x (F − 1μᵀ)ᵀ M (F − 1μᵀ)."""
    return einsum("batch s i, batch s t, batch t j -> i j", F - mu, M, F - mu)


def next_token_losses(logits, tokens):
    """−log p(x_{s+1} | x_{≤ s}) [batch, pos − 1]."""
    log_p = logits[:, :-1].log_softmax(-1)
    return -log_p.gather(-1, tokens[:, 1:, None])[..., 0]


def divergences(reference, logits):
    """KL(p‖q) = Σ_y p_y (log p_y − log q_y) [batch, pos], p the reference's probabilities."""
    log_p, log_q = reference.log_softmax(-1), logits.log_softmax(-1)
    return einsum("batch pos y, batch pos y -> batch pos", log_p.exp(), log_p - log_q)


def reconstructed(f, basis, k):
    """μ + (f − μ) E_k D_k, in float64; of a basis per head, in each head."""
    E, D = basis.encoder[..., :k], basis.decoder[..., :k, :]
    about = f.double() - basis.center
    if basis.per_head:
        f = einsum("batch pos head i, head i k, head k j -> batch pos head j", about, E, D)
    else:
        f = einsum("batch pos i, i k, k j -> batch pos j", about, E, D)
    return basis.center + f
