"""The comparison of the fast road with the official one, at a small scale."""
import json

import numpy as np
import pytest

from solutions import road
from worldmodels.rollouts import NoisePolicy


def test_the_report_says_what_is_equal_and_how_near_the_rest_is(tmp_path, capsys):
    road.run(road.RoadSettings(to=str(tmp_path), tracks=2, steps=30, returns=4, max_steps=60, timed=40))
    report = json.loads((tmp_path / "report.json").read_text())
    near = report["frame by frame"]
    assert near["frames"] == 62 and 0 < near["grey levels apart"] < 0.25 and near["worst frame"] < 1
    assert 0 < near["latents moved, in sd"] < 0.1
    rates = report["frames a second and core"]
    assert rates["official"] < rates["fast"] < rates["physics alone"]
    assert np.shape(report["returns"]["returns"]) == (4, 2) and report["returns"]["median absolute difference"] < 10
    assert "equal to the bit" in capsys.readouterr().out


def test_another_reward_is_no_equal_road(monkeypatch):
    step = road.FastCarRacing.step
    def generous(self, action):
        seen, reward, *rest = step(self, action)
        return seen, reward + 1e-12, *rest
    monkeypatch.setattr(road.FastCarRacing, "step", generous)
    with pytest.raises(AssertionError, match="seed 100000, frame 0"): road.drive_both(NoisePolicy("brownian", 5), 100_000, 5)
