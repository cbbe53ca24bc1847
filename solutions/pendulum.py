"""A game of one's own: gymnasium's Pendulum, for every command.

python -m solutions.train --settings ci --game-file solutions/pendulum.py --game Pendulum --run runs/pendulum
"""
from worldmodels.tools.games import register_game

register_game(
    "Pendulum", "Pendulum-v1",   # its bounds, frames a second and longest episode it tells itself
    crop=(0.2, 0.8, 0.2, 0.8),   # the pendulum stands in the middle of its picture: top, bottom, left, right
    defaults={                   # what a run's settings are for it, below every section of settings.ini
        "collect.noise": "held",          # Brownian torque hardly moves it
        "dynamics.reward": True,          # M learns what a step pays, so that its dreams can pay
        "dynamics_fit.batch": 32,
        "window": 64,
        "vae.likelihood": "bernoulli",  # nearly all is white: the squared error would teach V nothing else
    })
