"""The study of superpositions: its formulas against closed forms, a rehearsal of all of it, and the page's numbers."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import genmatch as gm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is beside the package and not in it

from benchmarks.papers import (  # noqa: E402
    models,
    superposition,
    superposition_equivalence,
    superposition_errors,
    superposition_hybrids,
    superposition_jumps,
    superposition_noise,
)
from benchmarks.papers.__main__ import main  # noqa: E402
from benchmarks.papers.images import load  # noqa: E402
from benchmarks.papers.models import Recipe  # noqa: E402
from benchmarks.papers.networks import tiny_unet  # noqa: E402
from benchmarks.papers.scale import Scale  # noqa: E402
from benchmarks.papers.superposition_models import (  # noqa: E402
    EDGES,
    LEVEL,
    PATH,
    Binned,
    Head,
    Remembering,
    calls,
    digits,
    equal,
    frechet_of,
    levels,
    made,
    summary,
    widened,
)
from benchmarks.papers.superposition_tables import TABLES, number, seeds, within  # noqa: E402

RESULTS = ROOT / "benchmarks/results/papers/superposition.json"
PAGE = ROOT / "docs/papers/superposition.md"
F64 = torch.float64


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory) -> Scale:
    return Scale("smoke", cache=tmp_path_factory.mktemp("cache"), progress=False)


class Bent(nn.Module):
    """A field that no closed form was made for."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) + t.reshape(-1, *[1] * (x.ndim - 1))


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.runs = nn.Conv2d(1, 5, 3, padding=1), 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.inner(x) * t[:, None, None, None]


# --- exact fields ---


def test_exact_field_of_blurred_images_is_that_of_their_mixture():
    images = torch.randn(5, 1, 2, 3, dtype=F64)
    world = gm.worlds.GaussianMixture(images.flatten(1), 0.1**2)
    network = superposition_equivalence.BlurredDigits(images, 0.1)
    for t in (0.0, 0.3, 0.9):
        x = torch.randn(7, 1, 2, 3, dtype=F64)
        exact = world.posterior_mean(x.flatten(1), torch.tensor(t, dtype=F64), torch.tensor(1 - t, dtype=F64))
        assert torch.allclose(network(x, torch.full((7,), t, dtype=F64)).flatten(1), exact.double(), atol=1e-10)
    sharp = superposition_equivalence.BlurredDigits(images, 0.2)(x, torch.full((7,), 0.9, dtype=F64))
    assert float((sharp.flatten(1) - exact).abs().max()) > 1e-3, "another blur is another law"


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_exact_samples_have_the_moments_of_the_path(t: float):
    images = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    x = superposition_equivalence.blurred(images, t, 40000, seed=3).flatten()
    second = t**2 * (1 + 0.1**2) + (1 - t) ** 2
    assert float(x.mean()) == pytest.approx(0, abs=0.03)
    assert float(x.square().mean()) == pytest.approx(second, rel=0.03)


def test_sums_of_flow_and_diffusion_are_diffusions_with_a_share_of_the_noise():
    model = gm.predict.Velocity(Bent(), PATH)
    found = superposition_equivalence.processes(model)
    x = torch.randn(6, 3, dtype=F64)
    for t in (0.2, 0.7):
        whole, flow = found["diffusion"](x, t), found["flow"](x, t)
        for name, share in (("0.5 flow + 0.5 diffusion", 0.5), ("0.75 flow + 0.25 diffusion", 0.25)):
            part = found[name](x, t)
            assert float(part.variance) == pytest.approx(share * 2 * (1 - t) / t)  # 2 b on the linear path
            assert torch.allclose(part.drift, flow.drift + share * (whole.drift - flow.drift))
        mixed = found["t flow + (1 - t) diffusion"](x, t)
        assert float(mixed.variance) == pytest.approx((1 - t) * 2 * (1 - t) / t)
    assert flow.variance is None
    half = gm.sample(found["0.5 flow + 0.5 diffusion"], x, times=equal(5), seed=0)
    assert torch.allclose(half, gm.sample(found["diffusion, half the noise"], x, times=equal(5), seed=0))


def test_densities_converge_to_the_data_with_order_two_and_not_without_the_score(scale: Scale):
    rows = {row["process"]: row for row in superposition_equivalence.density_errors(scale)}
    wrong = rows.pop("without the score")
    assert len(rows) == len(superposition_equivalence.processes(gm.predict.Velocity(Bent(), PATH)))
    for row in rows.values():
        assert row["order"] == pytest.approx(2, abs=0.1)
        assert row["errors"][-1] < 0.02
    assert wrong["errors"][-1] > 0.5


# --- readings ---


@pytest.mark.parametrize("reading", superposition_equivalence.READINGS)
def test_a_network_read_as_another_gives_the_same_process(reading: str):
    model = gm.predict.Velocity(Bent(), PATH)
    other = superposition_equivalence.read_as(model, reading)
    assert other.kind == reading
    x, t = torch.randn(6, 3, dtype=F64), 0.3
    u = Bent()(x, torch.full((6,), t, dtype=F64))
    noise, data = x - t * u, x + (1 - t) * u  # x = t x1 + (1 - t) x0, u = x1 - x0
    by_hand = {"velocity": u, "data": data, "noise": noise, "score": -noise / (1 - t), "v": t * noise - (1 - t) * data}
    assert torch.allclose(other.network(x, torch.full((6,), t, dtype=F64)), by_hand[reading])
    noise_2 = gm.diffusivity.EndpointSafe()
    one, two = gm.Diffusion(model, noise_2)(x, t), gm.Diffusion(other, noise_2)(x, t)
    assert torch.allclose(one.drift, two.drift)
    if reading != "velocity":  # what the network says is not the velocity: it matters that it is known what it tells
        wrong = gm.Flow(gm.predict.Velocity(other.network, PATH))(x, t)
        assert float((wrong.drift - gm.Flow(model)(x, t).drift).abs().max()) > 0.1


def test_readings_are_compared_to_rounding_and_a_wrong_one_would_be_seen(scale: Scale, monkeypatch: pytest.MonkeyPatch):
    images = load("digits", scale)
    model = gm.predict.Velocity(Bent(), PATH)
    rows = superposition_equivalence.readings({"velocity": model}, images, scale)
    assert {row["read"] for row in rows} == set(superposition_equivalence.READINGS)
    assert all(row[kind]["drift"] < 1e-10 for row in rows for kind in ("flow", "diffusion", "hybrid"))
    assert all(row[kind]["samples"] < 1e-8 for row in rows for kind in ("flow", "diffusion", "hybrid"))
    monkeypatch.setitem(superposition_equivalence.READINGS, "noise", gm.predict.Data)
    (wrong,) = (
        r for r in superposition_equivalence.readings({"velocity": model}, images, scale) if r["read"] == "noise"
    )
    assert wrong["flow"]["drift"] > 0.1


def test_data_error_of_a_network_is_that_of_the_data_it_implies(scale: Scale):
    images = load("digits", scale)
    model = gm.predict.Velocity(Bent(), PATH)
    trained = models.Trained(model, Recipe("flow", "bent", 1), [], 0.0, 0.0, 0.0, 0)
    (row,) = (r for r in superposition_equivalence.data_errors(trained, images) if r["t"] == 0.8)
    # An error of the velocity counts 1 - t in the data.
    of_velocity = gm.matching_loss(model, images.test, t=0.8, seed=models.HELD_OUT)
    assert row["error"] == pytest.approx(0.2**2 * float(of_velocity), rel=1e-4)


# --- networks of several heads ---


def test_bins_hold_a_grey_level_each_and_all_landings():
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    assert torch.allclose(middles[5:-5], LEVEL * torch.arange(-8, 9))
    low, high = gm.paths.GaussianJumpKernel(PATH).reach(-1.0, 1.0)
    assert float(EDGES[0]) < low < high < float(EDGES[-1])
    images = gm.data.digits("test").images
    assert torch.equal(levels(images), images)
    assert levels(torch.tensor([-3.0, 0.07, 0.06, 1.4])).tolist() == [-1.0, 0.125, 0.0, 1.0]


def test_channels_become_the_last_axis():
    network = Counted()
    x, t = torch.randn(3, 1, 4, 4), torch.rand(3)
    found = Binned(network)(x, t)
    assert found.shape == (3, 1, 4, 4, 5)
    assert torch.equal(found[:, 0, 2, 1, 4], network(x, t)[:, 4, 2, 1])


def test_a_body_runs_once_for_its_heads_and_again_when_anything_changed():
    network = Counted()
    body = Remembering(network)
    first, rest = Head(body, 0, 1), Head(body, 1, None)
    x, t = torch.randn(3, 1, 4, 4), torch.rand(3)
    with torch.no_grad():
        assert torch.equal(torch.cat([first(x, t), rest(x, t)], 1), network(x, t))
        assert network.runs == 2  # one of the body, one by hand
        first(x, t + 0.1)
        x += 1  # in place: the same tensor, another state
        first(x, t + 0.1)
        assert network.runs == 4
        network.inner.weight.add_(1.0)
        assert torch.equal(first(x, t + 0.1), network(x, t + 0.1)[:, :1])
        assert network.runs == 6
    assert first(x, t + 0.1).requires_grad, "what was kept without gradients does not stand for what has them"


def test_a_wider_network_differs_in_its_last_layer_alone():
    torch.manual_seed(3)
    plain = tiny_unet(1000.0)
    torch.manual_seed(3)
    wide = widened(tiny_unet, 28)(1000.0)
    own, its = plain.state_dict(), wide.state_dict()
    different = [name for name in own if own[name].shape != its[name].shape or not torch.equal(own[name], its[name])]
    assert different == ["output.weight", "output.bias"]
    assert wide(torch.randn(2, 1, 8, 8), torch.rand(2)).abs().max() == 0
    assert wide(torch.randn(2, 1, 8, 8), torch.rand(2)).shape == (2, 28, 8, 8)


def test_loss_of_two_heads_is_the_sum_of_two_losses_from_one_run():
    recipe = Recipe("joint", "tiny", 1)
    joint = models.predictor(recipe, widened(tiny_unet, 29))
    for p in joint.parameters():
        nn.init.normal_(p, std=0.1)
    velocity, rates = joint  # type: ignore[misc]
    x1 = gm.data.digits("test").images[:8]
    total = models.objective(joint, x1, seed=5)
    parts = gm.matching_loss(velocity, x1, seed=5) + gm.matching_loss(rates, x1, seed=5)
    assert total.item() == pytest.approx(parts.item(), rel=1e-6)
    total.backward()
    together = [p.grad.clone() for p in joint.parameters()]  # type: ignore[union-attr]
    joint.zero_grad()
    body = velocity.network.body
    for part in (velocity, rates):
        body.kept = None  # apart: nothing is remembered from one to the other
        gm.matching_loss(part, x1, seed=5).backward()
    assert all(torch.allclose(a, p.grad, atol=1e-5) for a, p in zip(together, joint.parameters(), strict=True))  # type: ignore[arg-type]


def test_network_calls_are_counted(scale: Scale):
    images = load("digits", scale)

    def of(kind: str, outputs: int):
        return models.predictor(
            Recipe(kind, "tiny", 1), widened(tiny_unet, outputs) if outputs > 1 else tiny_unet
        ).eval()

    velocity, jump, joint = of("flow", 1), of("jump", 28), of("joint", 29)
    found = superposition_jumps.arms([velocity], [jump], [joint])
    times = gm.grids.uniform(6)
    expected = {"flow": 6, "jump": 6, "jump + flow, joint": 6, "jump + flow, apart": 11}  # the last step is the flow's
    for name, count in expected.items():
        several, solver, _ = found[name]
        assert calls(several[0], images, times, solver) == count, name
    for name, (several, solver, cost) in found.items():
        spent = calls(several[0], images, gm.grids.uniform(24 // cost), solver)
        assert spent <= 24 or name == "jump + flow, apart", f"{name} spends more than is said"


# --- hybrids, noise, errors ---


def test_ways_and_shares_of_hybrids():
    velocity, noise = ["u"], ["e"]
    assert superposition_hybrids.pairs("two", velocity, noise) == [("u", "e")]
    assert superposition_hybrids.pairs("velocity, Euler", velocity, noise) == [("u", "u")]
    assert superposition_hybrids.pairs("noise", velocity, noise) == [("e", "e")]
    assert superposition_hybrids.RATIOS == (0.0, 0.25, 0.5, 0.75, 1.0)
    for way in ("velocity", "two", "velocity, uniform"):
        times, _ = superposition_hybrids.steps_of(way, 10)
        assert len(times) == 11
        assert float(times[-1]) == 1.0
    log_snr = PATH.schedule.log_snr(superposition_hybrids.steps_of("two", 10)[0][:-1])
    assert torch.allclose(log_snr.diff(), log_snr.diff()[0].expand(9))
    assert float(PATH.schedule.log_snr(equal(10)[:1])) == pytest.approx(-10)


def test_a_network_of_the_chain_and_itself_on_the_linear_path_give_the_same_images():
    torch.manual_seed(0)
    chain = gm.predict.Noise(gm.nn.MLP(3, width=16, time_scale=1.0), gm.GaussianPath(gm.schedules.DDPM()))
    linear = gm.predict.Reschedule(chain, PATH)
    log_snr = torch.linspace(-6, 6, 9, dtype=F64)
    noise = torch.randn(20, 3)
    ends = []
    for model in (chain, linear):
        schedule = model.path.schedule
        times = schedule.inverse_log_snr(log_snr)
        alpha, sigma = schedule(times)
        x = gm.sample(gm.Flow(model), sigma[0].float() * noise, times=times, solver=gm.solvers.Exponential(1), seed=0)
        ends.append(x / alpha[-1].float())
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("share", [superposition_noise.grey, superposition_noise.ink])
def test_noise_by_the_pixel_is_given_the_total_of_constant_noise(share):
    passed = [(t, 2 * torch.rand(50, 1, 4, 4, dtype=F64) - 1) for t in (0.1, 0.5, 0.9)]
    noise = superposition_noise.by_pixel(share, passed)
    spent = sum(2 * noise.scale.gamma * (1 - t) * float(share(x, t).mean()) for t, x in passed)  # type: ignore[attr-defined]
    assert spent == pytest.approx(sum(2 * (1 - t) for t, _ in passed))
    x = torch.tensor([0.0, 5.0])
    assert share(x, 0.5).tolist() == pytest.approx([1.0, 0.25] if share is superposition_noise.grey else [0.25, 1.0])


def test_what_the_forgetful_noise_forgets_is_half_the_divergence():
    model = gm.predict.Velocity(Bent(), PATH)
    noise = gm.diffusivity.StateDependent(superposition_noise.grey, gm.diffusivity.EndpointSafe(), elementwise=True)
    x, t = torch.randn(6, 3, dtype=F64), 0.4
    right, wrong = gm.Multiplicative(model, noise)(x, t), superposition_noise.Forgetful(model, noise)(x, t)
    slope = -1.5 * x / 0.25 * torch.exp(-((x / 0.5) ** 2))  # of 1/4 + 3/4 exp(-(x/0.5)^2)
    assert torch.allclose(right.drift - wrong.drift, 2 * (1 - t) / 2 * slope)
    assert torch.allclose(right.variance, wrong.variance)


@pytest.mark.parametrize("kind", superposition_errors.ERRORS)
def test_errors_of_the_output_have_the_size_that_is_said(kind: str):
    shape = (1, 16, 16)
    error = superposition_errors.error_of(kind, 0.3, shape, seed=1)
    x, t = torch.randn(200, *shape), torch.rand(200)
    found = error(x, t)
    assert float(found.square().mean().sqrt()) == pytest.approx(0.3, rel=0.03)
    assert torch.equal(error(x, t), found) is (kind != "hiss")
    assert torch.equal(error(x + 1 / 3, t), found) is (kind in ("offset", "pattern"))
    if kind == "pattern":
        assert torch.equal(found[0], found[-1])
        assert 50 < int((found[0] > 0).sum()) < 206


def test_error_sizes_are_in_units_of_the_targets():
    images = gm.data.digits("train").images
    x0 = torch.randn(images.shape)
    size = superposition_errors.native_size("velocity", images)
    assert size == pytest.approx(float((images - x0).square().mean().sqrt()), rel=0.02)
    assert superposition_errors.native_size("noise", images) == 1.0
    with pytest.raises(ValueError, match="an error is one of offset, pattern, waves, hiss, got 'bias'"):
        superposition_errors.error_of("bias", 0.1, (1, 8, 8), 0)


def test_errors_are_made_in_the_output_or_in_the_weights(scale: Scale):
    images = load("digits", scale)
    model = models.predictor(Recipe("noise", "tiny", 1), tiny_unet)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    x = torch.randn(4, 1, 8, 8)
    right = model(x, 0.5).noise
    off = superposition_errors.spoilt(model, "offset", images, 0)(x, 0.5).noise - right
    assert torch.allclose(off, torch.full_like(off, 0.1), atol=1e-5)
    assert superposition_errors.spoilt(model, "none", images, 0) is model
    few = superposition_errors.spoilt(model, "3 bits", images, 0)
    assert all(len(p.unique()) <= 7 for p in few.parameters() if p.ndim > 1)
    assert (few(x, 0.5).noise - right).abs().max().item() > 1e-3  # type: ignore[union-attr]


# --- jumps ---


def test_grids_of_jumps():
    for name, grid in superposition_jumps.GRIDS.items():
        times = grid(12)
        assert len(times) == 13
        assert (float(times[0]), float(times[-1])) == (0.0, 1.0)
        left = 1 - times[:-1]
        ratios = left[1:] / left[:-1]
        assert torch.allclose(ratios, ratios[0].expand(11)) is (name == "hazard")


def test_the_ranking_takes_each_on_its_better_grid_and_counts_seeds():
    def row(arm: str, grid: str, values: list[float]) -> dict:
        return {"arm": arm, "grid": grid, "steps": 8, **summary(values)}

    points = [
        row("a", "x", [3.0, 3.0]),
        row("a", "y", [1.0, 2.5]),
        row("b", "x", [2.0, 2.0]),
        row("b", "y", [9.0, 9.0]),
    ]
    found = superposition_jumps.ranking(points, 8, ("a", "b"))
    assert found["order"] == ["a", "b"]
    assert found["means"] == pytest.approx([math.sqrt(2.5), 2.0])
    assert found["seeds"] == [1]  # in the other seed b is better


def test_summaries_leave_out_what_diverged():
    found = summary([1.0, None, 4.0])
    assert (found["mean"], found["diverged"]) == (pytest.approx(2.0), 1)
    assert found["low"] < 2 < found["high"]
    assert summary([None])["mean"] is None
    assert seeds(found) == "2.00 (1.00 to 4.00, 1 of 3 diverged)"
    assert seeds(summary([None, None])) == "diverged"
    assert seeds(summary([2.0])) == within(summary([2.0])) == "2.00"
    assert [number(v) for v in (0.0123, 0.5, 12.3, 1234.5)] == ["0.012", "0.50", "12.30", "1234"]


def test_a_run_that_diverges_is_said_to(scale: Scale):
    class Explosive(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 1e30 * x

    images = load("digits", scale)
    found = made(images, gm.Flow(gm.predict.Velocity(Explosive(), PATH)), 4, scale, times=equal(4))
    assert found is None
    assert frechet_of(images, found) is None


# --- the whole ---


@pytest.mark.slow
def test_rehearsal_of_all(tmp_path: Path):
    pytest.importorskip("matplotlib")
    places = ["--out", str(tmp_path), "--figures", str(tmp_path), "--cache", str(tmp_path / "cache"), "--quiet"]
    main(["superposition", "--size", "smoke", *places])
    found = json.loads((tmp_path / "superposition.json").read_text())
    assert set(superposition.PARTS) <= set(found)
    assert all(table(found).count("\n") >= 2 for table in TABLES.values())
    for name in superposition.FIGURES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    scale = Scale("smoke", cache=tmp_path / "cache", progress=False)
    before = set(scale.cache.iterdir())
    for kind in ("flow", "noise", "jump", "joint"):  # all trained, none again
        trained, tried = digits(load("digits", scale), scale, kind)
        assert [t.recipe.seed for t in trained] == [0, 1]
        assert len({row["lr"] for row in tried}) == 2
    assert set(scale.cache.iterdir()) == before
    assert superposition.part("jumps", scale) == (found["jumps"], found["part_seconds"]["jumps"]), (
        "what is finished is taken up again"
    )


def test_the_page_has_the_tables_of_the_results():
    results, page = json.loads(RESULTS.read_text()), PAGE.read_text()
    assert results["size"] != "smoke"
    for name, table in TABLES.items():
        assert table(results) in page, f"the table {name!r} of docs/papers/superposition.md is not that of the results"
    for title in superposition.FIGURES:
        assert f"_static/papers/{title}.png" in page
        assert (ROOT / "docs/_static/papers" / f"{title}.png").is_file()


def test_the_verdicts_quote_the_results():
    results = json.loads(RESULTS.read_text())
    (verdicts,) = (part for part in PAGE.read_text().split("\n\n") if part.startswith("| claim |"))
    last = results["jumps"]["rankings"][-1]
    means = dict(zip(last["order"], last["means"], strict=True))
    assert last["order"][0] == "flow"
    assert last["order"][-1] == "jump"
    assert f"{means['jump']:.2f} against {means['flow']:.2f}, N = {last['steps']}" in verdicts
    assert f"{means['jump + flow, joint']:.2f} against {means['flow']:.2f}, N = {last['steps']}" in verdicts
    grids = {
        name: superposition_jumps.best(results["jumps"]["points"], name, last["steps"])["values"]
        for name in last["order"]
    }
    for worse in last["order"][1:]:
        assert all(flow < other for flow, other in zip(grids["flow"], grids[worse], strict=True))
    ratios = {
        p["process"]: p["noise over velocity"]["mean"]
        for p in results["equivalence"]["quality"]["points"]
        if p["steps"] == 40
    }
    assert f"{ratios['flow']:.2f} (flow) and {ratios['diffusion']:.2f} (diffusion)" in verdicts
    forgetful = [p for p in results["noise"]["laws"]["points"] if p["noise"] == "grey, forgetful"]
    assert f"{100 * (forgetful[-1]['halfway, square'] - 1):.0f}% off" in verdicts
    errors = [row["errors"][-1] for row in results["equivalence"]["densities"] if row["process"] != "without the score"]
    assert f"{min(errors):.0e} to {max(errors):.0e}".replace("e-0", "e-") in verdicts
