"""A controller in a file, with the settings that say how to read it."""
import numpy as np
import pytest
import torch

from worldmodels.controller import ControllerSettings
from worldmodels.controller_files import load_controller, save_controller
from worldmodels.tools.world import data, save_tensors


def test_a_controller_is_saved_and_loaded(tmp_path):
    params, path = np.random.default_rng(0).standard_normal(867), tmp_path / "new" / "c.safetensors"
    save_controller(path, ControllerSettings(hidden=3, squash="tanh"), params, score=900)
    settings, loaded = load_controller(path)
    assert settings == ControllerSettings(hidden=3, squash="tanh")
    np.testing.assert_array_equal(loaded, params)


def test_a_controller_stored_before_squashing_was_a_setting_is_a_cars(tmp_path):
    settings = {"hidden": 0, "bias": True, "memory": True}
    save_tensors(tmp_path / "c.safetensors", {"params": torch.zeros(867)}, {"settings": settings})
    assert load_controller(tmp_path / "c.safetensors")[0] == ControllerSettings(squash="car")


def test_what_is_no_controller_is_refused(tmp_path):
    none, cut = tmp_path / "none.safetensors", tmp_path / "cut.safetensors"
    vision = data() / "vision.safetensors"
    with pytest.raises(FileNotFoundError, match="solutions.controller"): load_controller(none)
    with pytest.raises(ValueError, match="holds no controller"): load_controller(vision)
    cut.write_bytes(vision.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a whole safetensors file"): load_controller(cut)
