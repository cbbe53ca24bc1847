"""Fixtures of several test modules. A module that needs another world defines its own of that name."""
import pytest
from builders import build_world

from worldmodels.tools.world import WorldModel


@pytest.fixture(scope="module")
def world() -> WorldModel: return build_world()
