"""What Atari games need in training beyond gymnasium's wrappers."""

from typing import Any, SupportsFloat

import gymnasium as gym

from pl_rl.errors import UsageError


class EpisodicLife(gym.Wrapper[Any, Any, Any, Any]):
    """Ends an episode when a life is lost; the next episode continues the same game.

    So the value function learns that losing a life ends all further reward
    (https://www.nature.com/articles/nature14236, methods, "training details"). A seeded reset begins a new game.

    Lives are those in the ``info`` of ALE's environments.

    Attributes:
        reset_goes_on: Whether the next reset without a seed continues the game rather than beginning a new one.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._lives = 0
        self.reset_goes_on = False

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step, which also terminates the episode if it costs a life."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        lives = info["lives"]
        self.reset_goes_on = lives < self._lives and not (terminated or truncated)
        self._lives = lives
        return obs, reward, terminated or self.reset_goes_on, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Continue with the next life, by a no-op step, or begin a new game."""
        ended = True
        if self.reset_goes_on and seed is None:
            obs, _, terminated, truncated, info = self.env.step(0)
            ended = terminated or truncated
        if ended:
            obs, info = self.env.reset(seed=seed, options=options)
        self._lives = info["lives"]
        self.reset_goes_on = False
        return obs, info


class FireOnReset(gym.Wrapper[Any, Any, Any, Any]):
    """Presses the button after each reset, which some games wait for, such as Breakout.

    Around :class:`EpisodicLife` it does so for each life. The reward of that step is not passed on.

    Raises:
        UsageError: If the game has no such action.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        meanings: list[str] = env.get_wrapper_attr("get_action_meanings")()
        if "FIRE" not in meanings:
            raise UsageError(f"FireOnReset: the game has no action FIRE, but {', '.join(meanings)}; leave it out")
        self._fire = meanings.index("FIRE")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and press the button; once more without it, should that end the episode."""
        self.env.reset(seed=seed, options=options)
        obs, _, terminated, truncated, info = self.env.step(self._fire)
        return self.env.reset(options=options) if terminated or truncated else (obs, info)
