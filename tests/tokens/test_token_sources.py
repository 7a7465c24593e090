"""Sources of tokens of known law, and what a path can tell of them."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

import genmatch as gm
from genmatch.paths import CategoricalTokens

LAW = [0.5, 0.0, 0.3, 0.2]


def test_it_draws_its_law():
    draws = gm.Draws(0, 20_000)
    x = CategoricalTokens(LAW).draw((20_000, 3), draws)
    counts = torch.bincount(x.flatten(), minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[[0, 2, 3]], 60_000 * torch.tensor([0.5, 0.3, 0.2]).double()).pvalue > 1e-4
    assert x.dtype == torch.int64
    part = CategoricalTokens(LAW).draw((5, 3), gm.Draws(0, 5, first_index=40))
    assert torch.equal(part, x[40:45])


def test_the_last_token_of_probability_zero_is_never_drawn():
    class Highest:
        device = torch.device("cpu")

        def uniform(self, shape, dtype):
            return torch.full(shape, 1.0, dtype=dtype)

    assert CategoricalTokens([0.1, 0.2, 0.7, 0.0]).draw((3,), Highest()).tolist() == [2, 2, 2]  # type: ignore[arg-type]


def test_what_a_path_knows_of_its_source():
    x = torch.tensor([[0, 3, 2]])
    for path, share, law in (
        (gm.MixturePath(4), 0.25, (range(4), [0.25] * 4)),
        (gm.MixturePath(4, mask=9), 0.0, ([9], [1.0])),
    ):
        assert path.why_no_source() == ""
        assert path.source_share(x) == share
        assert [v.tolist() for v in path.source_law(x)] == [list(law[0]), law[1]]
    path = gm.MixturePath(4, source=CategoricalTokens(LAW), padding=8)
    assert path.why_no_source() == ""
    assert path.source_share(torch.tensor([[0, 3, 1, 8]])).tolist()[0][:3] == [0.5, 0.2, 0.0]  # type: ignore[union-attr]
    assert path.source_law(x)[0].tolist() == [0, 1, 2, 3]
    assert path.source_law(x.int())[0].dtype == torch.int32
    shown = path.shows(torch.tensor([[0, 8]]))
    assert shown is not None
    assert shown.tolist() == [[True, False]]
    both = gm.MixturePath(4, mask=9, padding=8).shows(torch.tensor([[0, 8, 9]]))
    assert both is not None
    assert both.tolist() == [[True, False, False]]
    assert gm.MixturePath(4).shows(x) is None


def test_paths_with_one_source_are_one():
    def path(law) -> gm.MixturePath:
        return gm.MixturePath(4, source=CategoricalTokens(law))

    assert path(LAW) == path(torch.tensor(LAW, dtype=torch.float64))
    assert repr(path(LAW)) == "MixturePath(4, source=CategoricalTokens(4 tokens))"
    assert hash(path(LAW)) == hash(path(torch.tensor(LAW, dtype=torch.float64)))
    assert path(LAW) != path([0.25] * 4)


@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.Cosine(), gm.schedules.Polynomial(3.0)])
def test_the_time_of_a_kappa(schedule):
    path = gm.MixturePath(4, schedule=schedule)
    t = torch.tensor([[0.0, 0.001, 0.5], [0.25, 0.999, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(path.time(schedule(t)[0]), t, rtol=0, atol=1e-7)


def test_a_plans_slope_is_the_mean_slope():
    path = gm.MixturePath(4, schedule=gm.schedules.Polynomial(2.0))
    t = torch.tensor([0.5], dtype=torch.float64)
    instant = path.at(t).rows()[0]
    assert (instant.slope, instant.kappa, instant.ahead) == (1.0, 0.25, 0.25)
    step = path.at(t, torch.tensor([0.75], dtype=torch.float64)).rows()[0]
    assert step.slope == pytest.approx((0.5625 - 0.25) / 0.25)
    assert step.ahead == 0.5625


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ([0.5, 0.6], "must add to 1, these add to 1.1"),
        ([1.5, -0.5], "at least 0, got a least of -0.5"),
        ([0.5, float("nan")], "finite and at least 0"),
        ([1.0], r"K >= 2 tokens are a vector, got shape \(1,\)"),
        ([[0.5, 0.5]], r"are a vector, got shape \(1, 2\)"),
    ],
)
def test_a_law_that_is_none_is_refused(law, message: str):
    with pytest.raises(ValueError, match=message):
        CategoricalTokens(law)


def test_sources_and_vocabularies_must_agree():
    with pytest.raises(ValueError, match="the source has 4 tokens and the vocabulary 5"):
        gm.MixturePath(5, source=CategoricalTokens(LAW))
    with pytest.raises(ValueError, match="give a mask or a source, not both"):
        gm.MixturePath(4, mask=4, source=CategoricalTokens(LAW))
    with pytest.raises(ValueError, match="the mask id 3 is one of the tokens"):
        gm.MixturePath(4, mask=3)
