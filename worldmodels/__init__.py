"""World Models (Ha & Schmidhuber 2018): V, M, C and the dream. Modules are exported from `nbs/`."""
from gymnasium.envs.registration import register as _register

__version__ = "0.1.0"

for _game in ("CarRacing", "TakeCover"):  # by name: nothing is imported until a dream is made
    _register(f"worldmodels/{_game}Dream-v0", "worldmodels.dream_envs:DreamEnv",
              vector_entry_point="worldmodels.dream_envs:DreamVectorEnv", kwargs={"game": _game})

_register("worldmodels/CarRacing-v3", "worldmodels.tools.fast_car:FastCarRacing", max_episode_steps=1000,
          reward_threshold=900)
