"""What a log-density costs, beside flow_matching's compute_likelihood and beside SciPy.

Two fields whose densities are known in closed form: a linear one on the plane, x -> A x, and a product of Gaussians in
the shape of a small image, whose velocity is exact. Each library runs in its documented way with an exact divergence,
the method of Dormand and Prince and its own default tolerances, then with tolerances at which it is accurate.
``evaluations`` counts runs of the network on the batch, ``products`` derivatives of such a run along one direction,
forwards or backwards. Times are ratios to genmatch in the same round, as a median. The exact divergence of
flow_matching takes flat states alone, so it is given images flattened.

Run it as ``python benchmarks/likelihood.py [--save]``, the times alone as ``python benchmarks --only likelihood``.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from _interleave import interleave, ratios, save, versions
from _suite import Row, Scale
from torch import Tensor, nn

import genmatch as gm

PACKAGES = ("flow_matching", "torchdiffeq", "scipy")
BATCH = 16
MOST = 10_000  # evaluations at which a contender is stopped: it has not arrived


class TooManyError(RuntimeError):
    """A contender has spent the evaluations it is allowed."""


class Counted(nn.Module):
    """A velocity that counts its runs."""

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self.calls, self.most = 0, most

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.most:
            raise TooManyError
        return self.velocity(x, t)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError

    def sample(self, x: Tensor) -> Tensor:
        return x


class Linear(Counted):
    """x -> A x, without a trace."""

    shape = (2,)

    def __init__(self, most: int = MOST) -> None:
        super().__init__(most)
        self.register_buffer("matrix", torch.tensor([[1.0, 0.5], [2.0, -1.0]]))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return x @ self.matrix.T

    def log_prob(self, x: Tensor) -> Tensor:
        matrix = self.matrix.double()
        return normal(x.double() @ torch.matrix_exp(-matrix).T, torch.ones(2)) - matrix.trace()


class Image(Counted):
    """The exact velocity of the straight path to normals of many variances, turned in some direction."""

    shape = (1, 4, 4)

    def __init__(self, most: int = MOST) -> None:
        super().__init__(most)
        self.register_buffer("variance", torch.logspace(-2, 0, 16, dtype=torch.float64))
        turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
        self.register_buffer("turn", turn)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        t, flat = t[:, None], x.reshape(len(x), -1) @ self.turn
        slope = (t * self.variance - (1 - t)) / (t**2 * self.variance + (1 - t) ** 2)
        return ((slope * flat) @ self.turn.T).reshape(x.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        return normal(x.double().reshape(len(x), -1) @ self.turn.double(), self.variance.double())

    def sample(self, x: Tensor) -> Tensor:
        return ((x.reshape(len(x), -1) * self.variance.sqrt()) @ self.turn.T).reshape(x.shape)


def normal(x: Tensor, variance: Tensor) -> Tensor:
    logs = -0.5 * (x**2 / variance + (2 * math.pi * variance).log())
    return logs.reshape(len(x), -1).sum(1)


def genmatch(network: Counted, x: Tensor, tolerance: float | None) -> tuple[Tensor, int]:
    flow = gm.Flow(gm.predict.Velocity(network, gm.GaussianPath()))
    solver = None if tolerance is None else gm.solvers.Dopri5(rtol=tolerance, atol=tolerance)
    return gm.log_prob(flow, x, solver=solver), x[0].numel()


def flow_matching(network: Counted, x: Tensor, tolerance: float | None) -> tuple[Tensor, int]:
    shape = x.shape

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return network(x.reshape(shape), t.expand(len(x))).reshape(x.shape)

    solver = importlib.import_module("flow_matching.solver").ODESolver(velocity_model=velocity)
    known = {} if tolerance is None else {"atol": tolerance, "rtol": tolerance}

    def source(x: Tensor) -> Tensor:
        return normal(x, torch.ones(()))

    _, value = solver.compute_likelihood(
        x_1=x.reshape(len(x), -1), log_p0=source, step_size=None, method="dopri5", exact_divergence=True, **known
    )
    return value, x[0].numel()


def scipy(network: Counted, x: Tensor, tolerance: float | None) -> tuple[Tensor, int]:
    """A right-hand side in NumPy with the divergence by autograd, as in the first code for score models."""
    numpy, integrate = importlib.import_module("numpy"), importlib.import_module("scipy.integrate")
    known = {} if tolerance is None else {"atol": tolerance, "rtol": tolerance}
    size = x[0].numel()

    def slope(t: float, state) -> object:
        with torch.enable_grad():
            flat = torch.as_tensor(state, dtype=x.dtype)[: x.numel()]
            y = flat.reshape(x.shape).requires_grad_()
            value = network(y, torch.full((len(x),), t, dtype=x.dtype))
            rows = value.reshape(len(x), -1)
            trace = torch.zeros(len(x), dtype=x.dtype)
            for i in range(size):
                (row,) = torch.autograd.grad(rows[:, i].sum(), y, retain_graph=True)
                trace = trace + row.reshape(len(x), -1)[:, i]
        return numpy.concatenate([value.detach().numpy().ravel(), trace.detach().numpy()])

    first = numpy.concatenate([x.numpy().ravel(), numpy.zeros(len(x))])
    end = torch.as_tensor(integrate.solve_ivp(slope, (1.0, 0.0), first, method="RK45", **known).y[:, -1])
    x0, change = end[: x.numel()].reshape(x.shape), end[x.numel() :]
    return normal(x0, torch.ones(())) + change, size


def redrawn(network: Counted, x: Tensor, tolerance: float | None) -> tuple[Tensor, int]:
    """torchdiffeq with a new random probe at each evaluation: what it solves is no smooth function of time."""
    tolerance = 1e-5 if tolerance is None else tolerance
    rows = len(x)

    def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            value = network(y, t.expand(rows))
            probe = torch.randint_like(y, 2) * 2 - 1
            (row,) = torch.autograd.grad((value * probe).sum(), y)
        return value.detach(), (row * probe).reshape(rows, -1).sum(1)

    span = torch.tensor([1.0, 0.0], dtype=x.dtype)
    known = {"method": "dopri5", "atol": tolerance, "rtol": tolerance}
    ends, changes = importlib.import_module("torchdiffeq").odeint(slope, (x, x.new_zeros(rows)), span, **known)
    return normal(ends[-1], torch.ones(())) + changes[-1], 1


Contender = Callable[[Counted, Tensor, float | None], tuple[Tensor, int]]
CONTENDERS: Mapping[str, Contender] = {
    "genmatch": genmatch,
    "flow_matching": flow_matching,
    "SciPy RK45": scipy,
    "probe redrawn": redrawn,
}


def measure(
    field: type[Counted],
    dtype: torch.dtype,
    tolerance: float | None,
    rounds: int,
    contenders: Mapping[str, Contender] = CONTENDERS,
) -> dict[str, dict]:
    """Error, evaluations and time of each contender on one field."""
    torch.manual_seed(0)
    base = field().to(dtype)
    x = base.sample(torch.randn(BATCH, *base.shape, dtype=dtype))
    rows: dict[str, dict] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name, contender in contenders.items():
        network = field().to(dtype)
        try:
            value, products = contender(network, x, tolerance)
        except ImportError as error:
            rows[name] = {"missing": f"{type(error).__name__}: {error}"}
            continue
        except (TooManyError, AssertionError) as error:
            rows[name] = {"stopped": f"after {network.calls} evaluations {error}".strip()}
            continue
        error = (value.double() - base.log_prob(x)).abs().max().item()
        rows[name] = {"error": error, "evaluations": network.calls, "products": network.calls * products}
        runs[name] = functools.partial(contender, field(10**9).to(dtype), x, tolerance)
    for name, (middle, least, most) in ratios(interleave(runs, rounds), "genmatch").items():
        rows[name] |= {"ratio": middle, "least": least, "most": most}
    return rows


def cases(scale: Scale) -> Iterator[tuple[str, type[Counted], torch.dtype, float | None]]:
    """Title, field, dtype and tolerance of what is compared."""
    for field in scale.pick((Linear, Image), (Linear, Image), (Linear,)):
        for dtype in scale.pick((torch.float32, torch.float64), (torch.float32,), (torch.float32,)):
            for tolerance in (None, 1e-7) if dtype == torch.float64 else (None,):
                yield (
                    f"{field.__name__.lower()}, {BATCH} x {field.shape}, {str(dtype)[6:]}, "
                    + ("default tolerances" if tolerance is None else f"tolerances of {tolerance:g}"),
                    field,
                    dtype,
                    tolerance,
                )


def rows(scale: Scale) -> Iterator[Row]:
    """A row for each library: time, with the error and the evaluations of both sides."""
    libraries = {"flow_matching": "flow_matching", "SciPy RK45": "scipy"}
    contenders = {name: CONTENDERS[name] for name in ("genmatch", *libraries)}
    for what, *case in cases(scale):
        found = measure(*case, scale.repeats(5), contenders)
        own = found["genmatch"]
        for name, library in libraries.items():
            row = found[name]
            if "ratio" not in row:
                yield Row(what, "gm.log_prob", name, library, missing=row.get("missing") or f"stopped {row['stopped']}")
                continue
            notes = {key: {"ours": own[key], "theirs": row[key]} for key in ("error", "evaluations")}
            yield Row(what, "gm.log_prob", name, library, row["ratio"], row["least"], row["most"], notes=notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/likelihood.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    tables: dict[str, dict] = {}
    for title, *case in cases(Scale()):
        print(f"\n{title}\n  {'':16} {'error':>10} {'evaluations':>12} {'products':>10} {'time':>8}")
        tables[title] = measure(*case, args.rounds)
        for name, row in tables[title].items():
            if "error" not in row:
                print(f"  {name:16} {next(iter(row.values()))}")
                continue
            spread = f"({row['least']:.2f}, {row['most']:.2f})"
            print(
                f"  {name:16} {row['error']:10.1e} {row['evaluations']:12d} {row['products']:10d} "
                f"{row['ratio']:8.2f} {spread}"
            )
    if args.save:
        path = save("likelihood", {"versions": versions(*PACKAGES), "batch": BATCH, "tables": tables})
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
