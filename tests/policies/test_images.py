"""Images that are too small for the usual convolutions are read as grids of codes, alone and in a Dict."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN

from memory_tasks import OBSERVATIONS, Noise, make_ppo, vector
from unroll.agents import RecurrentPPO
from unroll.agents.ppo.step import ActorStep
from unroll.policies.images import CODES, GridExtractor, GridsCombinedExtractor, combined_extractor, image_extractor

GRID = spaces.Box(0, 255, (7, 7, 3), np.uint8)
LARGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
SPACES = {
    "grid": GRID,
    "dict of grids": spaces.Dict(
        direction=spaces.Discrete(4), grid=GRID, small=spaces.Box(0, 255, (3, 4, 1), np.uint8)
    ),
    "dict of grids and images": spaces.Dict(grid=GRID, image=LARGE),
}


def agent_of(kind, monkeypatch, **kwargs):
    monkeypatch.setitem(OBSERVATIONS, kind, SPACES[kind])
    policy = "CnnPolicy" if kind == "grid" else "MultiInputPolicy"
    return make_ppo(vector(lambda: Noise(kind, "discrete")), policy, n_steps=8, d_model=8, n_layers=1, **kwargs)


def channels_first(space):
    return spaces.Box(0, 255, (space.shape[2], *space.shape[:2]), np.uint8)


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (35, 64)])
def test_a_grid_of_any_size_has_features(sides):
    extractor = GridExtractor(spaces.Box(0, 255, (2, *sides), np.uint8), features_dim=5)
    assert extractor(torch.rand(4, 2, *sides)).shape == (4, 5)


def test_a_code_is_a_plane_and_what_is_rare_in_an_image_is_large():
    extractor = GridExtractor(channels_first(GRID))
    seen = []
    extractor.linear.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    codes = torch.full((1, 3, 7, 7), 2, dtype=torch.uint8)
    codes[0, 0, 3, 4] = 15  # one cell of 49
    codes[0, 0, :, 0] = 16  # seven cells of a code without a plane
    extractor(codes.float() / 255.0)  # as Stable-Baselines3 prepares an image
    planes, means = seen[0].split([3 * (CODES + 1) * 49, 3 * (CODES + 1)], 1)
    planes = planes.view(3, CODES + 1, 7, 7)
    means = means.view(3, CODES + 1)
    assert planes[0, 15].argmax() == 3 * 7 + 4
    assert planes[0, 15].max() == pytest.approx(6.8, abs=0.1)
    assert planes[0, 2, 0, 1] == pytest.approx(0.44, abs=0.01)  # 41 cells
    assert planes[0, 2, 0, 0] == planes[0, 2, 3, 4]  # it is not there
    assert planes[1:, :CODES].abs().max() == 0  # the same everywhere
    assert means[1:, 2].tolist() == [1, 1]  # so the means tell what is there
    assert (planes[0, CODES, :, 0] > planes[0, CODES, 0, 1]).all()  # by its brightness alone


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("grid", GridExtractor),
        ("image", NatureCNN),
        ("dict of grids", GridsCombinedExtractor),
        ("dict of grids and images", GridsCombinedExtractor),
        ("dict of images", CombinedExtractor),
    ],
)
def test_the_extractor_is_chosen_by_the_size_of_the_image(kind, expected, monkeypatch):
    monkeypatch.setitem(SPACES, kind, SPACES.get(kind, OBSERVATIONS.get(kind)))
    policy = "MultiInputPolicy" if "dict" in kind else "CnnPolicy"
    monkeypatch.setitem(OBSERVATIONS, kind, SPACES[kind])
    agent = make_ppo(vector(lambda: Noise(kind)), policy, d_model=8)
    extractor = agent.policy.features_extractor
    assert type(extractor) is expected
    observation = agent.policy.obs_to_tensor(agent.env.reset())[0]
    assert agent.policy.extract_features(observation).shape == (3, extractor.features_dim)


@pytest.mark.parametrize("kind", ["grid", "dict of grids"])
def test_an_agent_of_grids_learns_is_saved_and_exported(kind, monkeypatch, tmp_path):
    agent = agent_of(kind, monkeypatch).learn(48)
    assert agent.logger.name_to_value["train/first_ratio_error"] < 1e-5
    observation = agent.env.reset()
    chosen = agent.predict(observation, deterministic=True)[0]
    agent.save(tmp_path / "agent")
    again = RecurrentPPO.load(tmp_path / "agent", device="cpu").predict(observation, deterministic=True)[0]
    np.testing.assert_array_equal(again, chosen)

    # The exported step sees what the environment shows, with channels last.
    space = SPACES[kind]
    step = ActorStep(agent.policy, space)
    shown = observation if isinstance(observation, dict) else {"": observation}
    rows = []
    for key in space.spaces if isinstance(space, spaces.Dict) else [""]:
        rows.append(torch.from_numpy(np.moveaxis(shown[key], 1, -1) if shown[key].ndim == 4 else shown[key]))
    state = [port.zeros(3) for port in step.state]
    np.testing.assert_array_equal(step(*rows, torch.ones(3, dtype=torch.bool), *state)[0].numpy(), chosen)


def test_images_that_are_not_divided_by_255_are_no_codes():
    assert image_extractor(channels_first(GRID), normalize_images=False) is NatureCNN
    space = spaces.Dict(grid=channels_first(GRID))
    assert combined_extractor(space, normalize_images=False) is CombinedExtractor
    assert combined_extractor(space) is GridsCombinedExtractor
