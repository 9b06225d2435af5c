import random

import numpy as np
import torch

from pl_rl.seeding.random_state import restore_random_state, save_random_state
from pl_rl.seeding.streams import Stream, derive_seed


def draw():
    return random.random(), np.random.normal(), torch.rand(3).tolist()


def test_all_global_generators_come_back_from_plain_data(tmp_path):
    draw()
    torch.save(save_random_state(), tmp_path / "state")
    expected = draw()
    draw()
    restore_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert draw() == expected


def test_saving_draws_nothing():
    state = save_random_state()
    expected = draw()
    restore_random_state(state)
    save_random_state()
    assert draw() == expected


def test_streams_and_keys_are_independent():
    seeds = [derive_seed(seed, stream, key) for seed in (0, 1) for stream in Stream for key in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(7, Stream.TEST, 3) == derive_seed(7, Stream.TEST, 3)
