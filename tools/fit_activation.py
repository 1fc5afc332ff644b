"""Fit the two polynomials of csrc/cpu/activation.h and print its constants.

    python tools/fit_activation.py

Both are minimax fits (Remez exchange on a grid, in 50 digits). Coefficients are rounded to
float32 one by one, and the rest is fitted again after each to make good the rounding. The
order is from low to high powers, except where x changes sign: there x^k and up alone cannot
be fitted by exchange, and the order is from high to low.
Needs mpmath and numpy; takes a few seconds; no randomness.
"""

import argparse

import mpmath as mp
import numpy as np

mp.mp.dps = 50


def minimax(xs, target, weight, powers):
    """Coefficients c of sum(c[k] x^powers[k]) that minimise max |weight (sum - target)|."""
    n = len(powers)
    basis = [[x**p for p in powers] for x in xs]
    last = len(xs) - 1
    picks = sorted({round(last * (1 - np.cos(np.pi * i / n)) / 2) for i in range(n + 1)})
    for _ in range(40):
        system = mp.matrix(n + 1, n + 1)
        rhs = mp.matrix(n + 1, 1)
        for row, i in enumerate(picks):
            for col in range(n):
                system[row, col] = basis[i][col]
            system[row, n] = (-1) ** row / weight[i]
            rhs[row] = target[i]
        solution = mp.lu_solve(system, rhs)
        coeffs, level = list(solution[:n]), abs(solution[n])
        error = [
            w * (mp.fdot(b, coeffs) - t) for b, t, w in zip(basis, target, weight, strict=True)
        ]
        picks = alternating_peaks(error, n + 1)
        if max(map(abs, error)) <= level * mp.mpf("1.001"):
            break
    return coeffs, max(map(abs, error))


def alternating_peaks(error, count):
    """Indices of `count` consecutive extrema of alternating sign, the largest kept."""
    peaks = []
    for i, e in enumerate(error):
        if peaks and (e > 0) == (error[peaks[-1]] > 0):
            if abs(e) > abs(error[peaks[-1]]):
                peaks[-1] = i
        else:
            peaks.append(i)
    while len(peaks) > count:
        peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
    if len(peaks) < count:
        raise RuntimeError(f"the error has {len(peaks)} extrema, {count} needed: finer grid")
    return peaks


def float32(x):
    """x rounded to float32, as an exact mpmath number."""
    return mp.mpf(float(np.float32(float(x))))


def fit_rounded(xs, target, weight, powers, order):
    """Like minimax, with every coefficient a float32, rounded in the given order of powers."""
    done, left, target = {}, list(powers), list(target)
    for p in order:
        coeffs, _ = minimax(xs, target, weight, left)
        done[p] = float32(coeffs[left.index(p)])
        left.remove(p)
        target = [t - done[p] * x**p for t, x in zip(target, xs, strict=True)]
    return [done[p] for p in powers], max(abs(w * t) for w, t in zip(weight, target, strict=True))


def chebyshev_grid(low, high, n):
    return [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (i + mp.mpf(1) / 2) / n)
        for i in range(n)
    ]


def report(name, powers, coeffs, error):
    print(f"{name}: error 2^{float(mp.log(error, 2)):.2f}")
    for p, c in zip(powers, coeffs, strict=True):
        print(f"  x^{p:<2d} {float(c).hex():>24s}  {mp.nstr(c, 9)}")


def fit_expm1(degree):
    """exp(r) - 1 = r + r^2/2 + ..., |r| <= ln(2)/2, error relative to exp(r)."""
    half = mp.log(2) / 2 * (1 + mp.mpf(2) ** -16)
    # An even count: r = 0, where the weight is 0, is no grid point.
    r = chebyshev_grid(-half, half, 600)
    target = [(mp.expm1(x) - x - x * x / 2) / x**3 for x in r]
    weight = [abs(x) ** 3 * mp.exp(-x) for x in r]
    powers = list(range(degree - 2))
    coeffs, error = fit_rounded(r, target, weight, powers, powers[::-1])
    report(f"exp(r) - 1 - r - r^2/2, degree {degree}", [p + 3 for p in powers], coeffs, error)


def fit_log_mills(degree, c, largest):
    """-ln(Phi(-a) (2 + 2ha)) - a^2/2 = b L(b), b = a/2 / (1 + ha), h = 1/c; absolute error."""
    h = float32(1 / mp.mpf(c))
    # A grid in ha / (1 + ha), which is b but for a factor; b = 0 has weight 0.
    grid = chebyshev_grid(mp.mpf(10) ** -9, largest / (largest + 1 / h), 600)
    a = [x / h / (1 - x) for x in grid]
    b = [x / (2 * (1 + h * x)) for x in a]
    exponent = [-mp.log(mp.erfc(x / mp.sqrt(2)) * (1 + h * x)) - x * x / 2 for x in a]
    target = [y / x for x, y in zip(b, exponent, strict=True)]
    powers = list(range(degree))
    coeffs, error = fit_rounded(b, target, b, powers, powers)
    print(f"h = {float(h).hex()}")
    report(f"b L(b), degree {degree}", [p + 1 for p in powers], coeffs, error)


def split_gelu_tanh():
    """2 sqrt(2/pi) (1 and 0.044715) as sums of two floats, the first k0 of 17 bits."""
    k0 = 2 * mp.sqrt(2 / mp.pi)
    k1 = k0 * mp.mpf("0.044715")
    for name, k, high in (
        ("k0", k0, mp.floor(k0 * 2**16 + mp.mpf(1) / 2) / 2**16),
        ("k1", k1, float32(k1)),
    ):
        print(f"{name} = {float(high).hex()} + {float(float32(k - high)).hex()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--exp-degree", type=int, default=6)
    parser.add_argument("--mills-degree", type=int, default=11)
    parser.add_argument("--c", type=float, default=2.4, help="the c of b = a/2 / (1 + a/c)")
    parser.add_argument("--largest", type=float, default=13.3, help="end of the range of a")
    args = parser.parse_args()
    fit_expm1(args.exp_degree)
    fit_log_mills(args.mills_degree, args.c, args.largest)
    split_gelu_tanh()


if __name__ == "__main__":
    main()
