"""Gymnasium's MuJoCo tasks, version 5: observations, rewards and ends of all environments at once.

The numbers are those of gymnasium's own environments, bit for bit; formulas are in the order in which they round.

Shapes: ``N`` environments, ``A`` actuators.

Source: https://gymnasium.farama.org/environments/mujoco/
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pl_rl.envs.simulations import Floats, Simulations

Bools = npt.NDArray[np.bool_]
Outcome = tuple[Floats, Floats, Bools]
"""Observations ``[N, ...]``, rewards ``[N]`` and which episodes terminated ``[N]``."""


class Task:
    """HalfCheetah and Swimmer, whose episodes a time limit alone ends.

    Args:
        env: Gymnasium's own environment, for its arguments.
        simulations: Of each environment.
    """

    needs_forces = False
    """Whether more than positions and velocities is read: external forces, which MuJoCo computes on request, too."""

    def __init__(self, env: Any, simulations: Simulations) -> None:
        self.env, self.data, self.now = env, simulations.data, simulations.now

    def position(self) -> Floats:
        """Along the axis on which moving is rewarded ``[N]``."""
        return self.now("qpos")[:, 0].copy()

    def outcome(self, moved: Floats, actions: npt.NDArray[Any]) -> Outcome:
        """What a step led to.

        Args:
            moved: By how much it changed the :meth:`position` ``[N]``.
            actions: ``[N, A]``
        """
        rewards = self.env._forward_reward_weight * (moved / self.env.dt)
        terminated = np.zeros(len(moved), np.bool_)
        healthy = self.healthy()
        if healthy is not None:
            rewards = rewards + healthy * self.env._healthy_reward
            terminated = ~healthy & self.env._terminate_when_unhealthy
        return self.observations(), rewards - self.cost(actions), terminated

    def observations(self) -> Floats:
        """``[N, ...]``, without the positions that the environment leaves out."""
        skipped = self.env.observation_structure["skipped_qpos"]
        return np.concatenate([self.now("qpos")[:, skipped:], *self.observed()], axis=1)

    def observed(self) -> list[Floats]:
        """What is observed besides positions, each ``[N, K]``."""
        return [self.now("qvel")]

    def healthy(self) -> Bools | None:
        """Which robots ``[N]`` are; ``None`` where that is never asked for."""
        return None

    def cost(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of a step ``[N]``."""
        cost: npt.NDArray[Any] = self.env._ctrl_cost_weight * np.square(actions).sum(-1)
        return cost


class Walker2d(Task):
    """Falls when it is too low, too high or too far inclined."""

    def observed(self) -> list[Floats]:
        """Velocities, clipped."""
        return [np.clip(self.now("qvel"), -10, 10)]

    def healthy(self) -> Bools:
        """By height and angle."""
        height, angle = self.now("qpos")[:, 1:3].T
        return _within(height, self.env._healthy_z_range) & _within(angle, self.env._healthy_angle_range)


class Hopper(Walker2d):
    """As Walker2d; and all else of its state has bounds."""

    def healthy(self) -> Bools:
        """By height, angle and state."""
        state = np.concatenate([self.now("qpos")[:, 2:], self.now("qvel")], axis=1)
        return super().healthy() & _within(state, self.env._healthy_state_range).all(axis=1)


class Ant(Task):
    """Contact forces cost, and are observed."""

    needs_forces = True

    def position(self) -> Floats:
        """Of the main body."""
        body = self.data[0].body(self.env._main_body).id
        return self.now("xpos")[:, 3 * body]

    def observed(self) -> list[Floats]:
        """Velocities and contact forces, but the world's."""
        forces = [self._forces()[:, 6:]] if self.env._include_cfrc_ext_in_observation else []
        return [self.now("qvel"), *forces]

    def healthy(self) -> Bools:
        """By height, bounds included."""
        qpos = self.now("qpos")
        low, high = self.env._healthy_z_range
        finite = np.isfinite(np.concatenate([qpos, self.now("qvel")], axis=1)).all(axis=1)
        upright: Bools = finite & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)
        return upright

    def cost(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of actions and of contacts."""
        contacts: Floats = self.env._contact_cost_weight * np.square(self._forces()).sum(-1)
        return super().cost(actions) + contacts

    def _forces(self) -> Floats:
        low, high = self.env._contact_force_range
        return np.clip(self.now("cfrc_ext"), low, high)


class Humanoid(Task):
    """Rewarded for its centre of mass; inertia, velocities and forces of its bodies are observed."""

    needs_forces = True

    def position(self) -> Floats:
        """Of the centre of mass."""
        from gymnasium.envs.mujoco import humanoid_v5

        centre: Any = humanoid_v5.mass_center
        return np.array([centre(self.env.model, data)[0] for data in self.data])

    def observed(self) -> list[Floats]:
        """What the environment includes, of bodies but the world and of joints but the root."""
        left_out = {"cinert": 10, "cvel": 6, "qfrc_actuator": 6, "cfrc_ext": 6}
        # Gymnasium asks for True itself, which other truths are not.
        included = [name for name in left_out if getattr(self.env, f"_include_{name}_in_observation") is True]
        return [self.now("qvel"), *(self.now(name)[:, left_out[name] :] for name in included)]

    def healthy(self) -> Bools:
        """By height."""
        return _within(self.now("qpos")[:, 2], self.env._healthy_z_range)

    def cost(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of controls and of contacts."""
        contacts = self.env._contact_cost_weight * np.square(self.now("cfrc_ext")).sum(-1)
        cost: Floats = super().cost(self.now("ctrl")) + np.clip(contacts, *self.env._contact_cost_range)
        return cost


class OwnStep(Task):
    """Tasks whose step looks at nothing from before the simulation: gymnasium's own code follows it."""

    needs_forces = True

    def position(self) -> Floats:
        """Of no task here."""
        return np.zeros(len(self.data))

    def outcome(self, moved: Floats, actions: npt.NDArray[Any]) -> Outcome:
        """As gymnasium says, one environment after another."""
        self.env.do_simulation = lambda ctrl, n_frames: None  # it is done
        steps = []
        for data, action in zip(self.data, actions, strict=True):
            self.env.data = data
            steps.append(self.env.step(action)[:3])
        obs, rewards, terminated = zip(*steps, strict=True)
        return np.stack(obs), np.array(rewards, np.float64), np.array(terminated)


TASKS: dict[str, type[Task]] = {
    f"gymnasium.envs.mujoco.{module}_v5:{name}Env": task
    for module, name, task in [
        ("half_cheetah", "HalfCheetah", Task),
        ("swimmer", "Swimmer", Task),
        ("walker2d", "Walker2d", Walker2d),
        ("hopper", "Hopper", Hopper),
        ("ant", "Ant", Ant),
        ("humanoid", "Humanoid", Humanoid),
        ("humanoidstandup", "HumanoidStandup", OwnStep),
        ("inverted_double_pendulum", "InvertedDoublePendulum", OwnStep),
        ("inverted_pendulum", "InvertedPendulum", OwnStep),
        ("pusher", "Pusher", OwnStep),
        ("reacher", "Reacher", OwnStep),
    ]
}
"""By the entry point that gymnasium registers."""


def _within(values: Floats, bounds: tuple[float, float]) -> Bools:
    low, high = bounds
    inside: Bools = (low < values) & (values < high)
    return inside
