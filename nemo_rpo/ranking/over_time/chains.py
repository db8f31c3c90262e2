r"""The linear algebra of many chains that touch: H = M + C.

M is tridiagonal, all players' chains one after another, with zeros where one ends; C couples states of different
players that met in a slice and has no entry within a chain. M is factored in O(m), H never: systems are solved by
conjugate gradients preconditioned by M, which is block Jacobi with a block a player. Shapes: m states.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_rpo.errors import missing_extra


def scipy_parts() -> tuple[Any, Any, Any]:
    """``scipy.linalg.lapack``, ``scipy.sparse`` and ``scipy.optimize``; raises :class:`MissingExtraError`."""
    try:
        from scipy import optimize, sparse
        from scipy.linalg import lapack
    except ImportError as exc:
        raise missing_extra("scipy", "rank") from exc
    return lapack, sparse, optimize


class Chains:
    """H at one point.

    Args:
        diagonal: float64 [m], of H. beside: float64 [m - 1], H's entries of neighbours, 0 between chains.
        coupling: C, a symmetric ``scipy.sparse.csr_array`` [m, m].
    """

    def __init__(self, diagonal: np.ndarray, beside: np.ndarray, coupling: Any) -> None:
        self._lapack = scipy_parts()[0]
        self.diagonal, self.beside, self.coupling = diagonal, beside, coupling
        self._pivot, self._factor, info = self._lapack.dpttrf(diagonal, beside)
        if info:
            raise FloatingPointError("the chains' matrix is not positive definite")
        self._bands = np.asfortranarray(np.stack((np.ones_like(diagonal), np.r_[self._factor, 0.0])))

    def times(self, x: np.ndarray) -> np.ndarray:
        """H x."""
        found = self.diagonal * x + self.coupling @ x
        found[:-1] += self.beside * x[1:]
        found[1:] += self.beside * x[:-1]
        return found

    def within(self, b: np.ndarray) -> np.ndarray:
        """M⁻¹ b."""
        return self._lapack.dpttrs(self._pivot, self._factor, b)[0].reshape(b.shape)

    def solve(self, b: np.ndarray, accuracy: float, most: int = 500) -> np.ndarray:
        """H⁻¹ b to a residual of ``accuracy`` of b's, both in M⁻¹'s norm."""
        x, residual = np.zeros_like(b), b.copy()
        z = self.within(residual)
        direction, power = z, float(residual @ z)
        goal = accuracy**2 * power
        for _ in range(most):
            if power <= goal or power == 0:
                break
            curved = self.times(direction)
            length = power / float(direction @ curved)
            x += length * direction
            residual -= length * curved
            z = self.within(residual)
            before, power = power, float(residual @ z)
            direction = z + (power / before) * direction
        return x

    def dense(self) -> np.ndarray:
        """H, [m, m]."""
        found = self.coupling.toarray() + np.diag(self.diagonal)
        place = np.arange(len(self.beside))
        found[place, place + 1] += self.beside
        found[place + 1, place] += self.beside
        return found

    def diagonal_within(self) -> np.ndarray:
        """The diagonal of M⁻¹, from its pivots eliminated from both ends."""
        back = self._lapack.dpttrf(self.diagonal[::-1].copy(), self.beside[::-1].copy())[0][::-1]
        return 1 / (self._pivot + back - self.diagonal)

    def log_determinant(self, probes: np.ndarray, steps: int) -> float:
        """log |H| by stochastic Lanczos quadrature of what M leaves, with the same ``probes`` [b, m] of ±1 every time.

        log |H| = log |M| + tr log A with A = M^{-1/2} H M^{-T/2}; differences between similar H have far less noise
        than each by itself. Source: S. Ubaru, J. Chen and Y. Saad, SIAM J. Matrix Anal. Appl. 38 (2017).
        """
        found = [self._quadrature(probe, steps) for probe in probes]
        return float(np.log(self._pivot).sum() + np.mean(found))

    def _quadrature(self, probe: np.ndarray, steps: int) -> float:
        """zᵀ log(A) z."""
        size = float(probe @ probe)
        now, before, b = probe / np.sqrt(size), np.zeros_like(probe), 0.0
        alpha, beta = [], []
        for _ in range(min(steps, len(probe))):
            after = self._whitened(now) - b * before
            alpha.append(float(after @ now))
            after -= alpha[-1] * now
            b = float(np.linalg.norm(after))
            if b < 1e-10:
                break
            before, now = now, after / b
            beta.append(b)
        inner = beta[: len(alpha) - 1]
        value, vector = np.linalg.eigh(np.diag(alpha) + np.diag(inner, 1) + np.diag(inner, -1))
        return size * float((vector[0] ** 2 * np.log(value.clip(1e-300))).sum())

    def _whitened(self, x: np.ndarray) -> np.ndarray:
        """A x, with M = L D Lᵀ and M^{1/2} = L D^{1/2}; A = I + M^{-1/2} C M^{-T/2}."""
        root = np.sqrt(self._pivot)
        inner = self.coupling @ self._triangular(x / root, transposed=True)
        return x + self._triangular(inner, transposed=False) / root

    def _triangular(self, b: np.ndarray, transposed: bool) -> np.ndarray:
        trans = b"T" if transposed else b"N"
        found = self._lapack.dtbtrs(self._bands, b, uplo=b"L", trans=trans, diag=b"U")[0]
        return found.reshape(b.shape)
