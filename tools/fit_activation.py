"""Fit the two polynomials of csrc/cpu/activation.h and print their coefficients.

    python tools/fit_activation.py

Both are minimax fits (Remez exchange on a grid, in 50 digits) of the relative error of the
value that they end up in. Coefficients are rounded to float32 one by one, highest power
first, and the rest is fitted again after each, so that a rounding error is made good by the
lower powers. Needs mpmath and numpy; takes about ten seconds; no randomness.
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
        error = [w * (mp.fdot(b, coeffs) - t) for b, t, w in zip(basis, target, weight)]
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


def fit_rounded(xs, target, weight, powers):
    """Like minimax, with every coefficient a float32."""
    done = []
    target = list(target)
    for k in reversed(range(len(powers))):
        coeffs, _ = minimax(xs, target, weight, powers[: k + 1])
        c = float32(coeffs[k])
        done.insert(0, c)
        target = [t - c * x ** powers[k] for t, x in zip(target, xs)]
    return done, max(abs(w * t) for w, t in zip(weight, target))


def chebyshev_grid(low, high, n):
    return [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (i + mp.mpf(1) / 2) / n)
        for i in range(n)
    ]


def report(name, powers, coeffs, error):
    print(f"{name}: relative error 2^{float(mp.log(error, 2)):.2f}")
    for p, c in zip(powers, coeffs):
        print(f"  x^{p:<2d} {float(c).hex():>24s}  {mp.nstr(c, 9)}")


def fit_expm1(degree):
    """exp(-r) - 1 = -r + r^2/2 + ..., |r| <= ln(2)/2, error relative to exp(-r)."""
    half = mp.log(2) / 2 * (1 + mp.mpf(2) ** -16)
    # An even count: r = 0 is no grid point, where the weight of the highest terms is 0.
    r = chebyshev_grid(-half, half, 600)
    target = [(mp.expm1(-x) + x - x * x / 2) / x**3 for x in r]
    weight = [abs(x) ** 3 * mp.exp(x) for x in r]
    powers = list(range(degree - 2))
    coeffs, error = fit_rounded(r, target, weight, powers)
    report(f"exp(-r) - 1 + r - r^2/2, degree {degree}", [p + 3 for p in powers], coeffs, error)


def fit_mills(degree, c, largest):
    """(a + c) Phi(-a) exp(a^2/2) - 1 in v = (c - a) / (c + a), relative to itself plus 1."""
    c = mp.mpf(c)
    v = chebyshev_grid((c - largest) / (c + largest), mp.mpf(1), 600)
    a = [c * (1 - x) / (1 + x) for x in v]
    value = [(x + c) * mp.erfc(x / mp.sqrt(2)) * mp.exp(x * x / 2) / 2 for x in a]
    powers = list(range(degree + 1))
    coeffs, error = fit_rounded(v, [y - 1 for y in value], [1 / y for y in value], powers)
    report(f"(a + c) Phi(-a) exp(a^2/2) - 1, c = {mp.nstr(c, 6)}, degree {degree}",
           powers, coeffs, error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--exp-degree", type=int, default=6)
    parser.add_argument("--mills-degree", type=int, default=9)
    parser.add_argument("--c", type=float, default=3.375, help="the c of v = (c - a) / (c + a)")
    parser.add_argument("--largest", type=float, default=14.0, help="end of the range of a")
    args = parser.parse_args()
    fit_expm1(args.exp_degree)
    fit_mills(args.mills_degree, args.c, args.largest)


if __name__ == "__main__":
    main()
