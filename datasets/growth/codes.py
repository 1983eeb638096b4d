"""Features as growth compares them: unit length, rounded to float16.

Cells are chosen by codes in units of 1/4000: whole numbers whose products add up to less than 2²⁴ (Cauchy–Schwarz), so in float32 every
partial sum is exact, in whatever order it is made. Hence neither threads nor tiles nor ranks nor the BLAS at hand change which cells
are searched. Likewise a sum of products of two codes is exact in float64: they are multiples of 2⁻⁴⁸, and it stays below 2.

Letters: N samples, D width, B samples of a block, C cells.
"""

import numpy as np
import numpy.typing as npt
import torch

Codes = npt.NDArray[np.float16]  # [N, D]

MAX_WIDTH = 8192
GRID = 4000.0


def encode(features_ND: npt.NDArray[np.floating]) -> Codes:
    """Returns the rows at unit length, in float16; a row of zeros, or one that is not finite, becomes NaN.

    A cosine of two codes is off by less than 2⁻¹¹, and by about 1e-5 where D is 256.
    """
    rows = features_ND.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    codes: Codes = torch.from_numpy(rows).half().numpy()  # several times faster than numpy's own conversion
    return codes


def cosines(codes_BD: Codes, others_BD: Codes) -> npt.NDArray[np.float64]:
    """Returns float64[B] cosines of rows, exact."""
    return np.asarray(np.einsum("bd,bd->b", codes_BD.astype(np.float64), others_BD.astype(np.float64)), np.float64)


def gridded(codes_ND: Codes) -> npt.NDArray[np.float32]:
    """Returns the codes in units of 1/4000, as whole numbers in float32[N, D]."""
    return (torch.from_numpy(codes_ND.astype(np.float32)) * GRID).round_().numpy()
