"""The demonstration, as small as it goes: what it writes, and that it refuses what it cannot do."""

import json
import re
from pathlib import Path

import pytest

from genmatch.demo import STEPS, Settings, run


@pytest.mark.slow
def test_the_demonstration_writes_what_it_promises(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    run(Settings(steps=3, samples=24, long=False, progress=False, out=tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"data", "train_steps", "parameters", "seconds", "records"} <= set(results)
    assert (results["data"], results["train_steps"]) == ("digits", 3)
    assert results["parameters"] <= 300_000
    keys = {"model", "sampler", "steps", "evaluations", "frechet", "curvature", "ms_per_image"}
    assert all(set(record) == keys for record in results["records"])
    evaluations: dict[tuple[str, str], set[int]] = {}
    for record in results["records"]:
        evaluations.setdefault((record["model"], record["sampler"]), set()).add(record["evaluations"])
        each = 4 if record["sampler"] == "RK4" else 1
        assert record["evaluations"] == each * record["steps"]
    assert {model for model, _ in evaluations} == {"flow", "diffusion", "hybrid"}
    for arm in (("flow", "Euler"), ("diffusion", "DDIM"), ("diffusion", "DDPM"), ("hybrid", "Exponential")):
        assert set(STEPS) <= evaluations[arm]
    assert evaluations["flow", "RK4"] <= evaluations["flow", "Euler"], "the two meet at equal evaluations"
    page = (tmp_path / "report.html").read_text()
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page)), "one self-contained page"
    assert "href=" not in page
    assert {path.name for path in tmp_path.glob("*.png")} >= {"quality.png", "samples.png", "curvature.png", "loss.png"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "faces"}, "data must be digits, mnist or cifar10, got 'faces'"),
        ({"size": 32}, "size is for MNIST"),
        ({"download": True}, "download is for MNIST"),
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"samples": 0}, "samples must be a positive integer, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)
