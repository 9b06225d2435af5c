"""What is trained: the same environments, networks and hyperparameters for every library."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Workload:
    """One training run.

    ``encoder_sizes`` are hidden layers that policy and value function share, ``head_sizes`` those that each has of its
    own; an ``atari`` game has the wrappers of configs/pong.yaml and the convolutional network of deep Q-learning
    instead. ``components`` of the observation are seen, all if there are none; of a dictionary the entries ``keys``, as
    one vector. With ``memory_size`` policy and value function have an LSTM each, before their own layers; ``masked``
    takes the environment's action mask. ``vf_coef`` weighs the mean squared error of the values. ``peers`` are the
    libraries that can do the same.
    """

    env_id: str
    num_envs: int
    num_steps: int
    update_epochs: int
    minibatch_size: int
    total_env_steps: int
    encoder_sizes: tuple[int, ...]
    head_sizes: tuple[int, ...]
    activation: str
    learning_rate: float
    gamma: float
    ent_coef: float
    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    vf_coef: float = 0.25
    max_grad_norm: float = 0.5
    adam_eps: float = 1e-5
    anneal_lr: bool = False
    clip_vloss: bool = False
    atari: bool = False
    components: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    memory_size: int = 0
    sequence_length: int = 16
    masked: bool = False
    peers: tuple[str, ...] = ("sb3", "skrl", "sheeprl")

    @property
    def env_steps_per_iteration(self) -> int:
        """Transitions of one rollout."""
        return self.num_envs * self.num_steps

    @property
    def title(self) -> str:
        """The sizes that decide the speed, in words."""
        return (
            f"{self.env_id}, {self.num_envs} environments x {self.num_steps} steps, "
            f"{self.update_epochs} epochs, minibatches of {self.minibatch_size:,}"
        )

    def scaled_env_steps(self, scale: float) -> int:
        """A part of the run, in whole iterations and at least ten of them."""
        iterations = max(10, round(scale * self.total_env_steps / self.env_steps_per_iteration))
        return iterations * self.env_steps_per_iteration


CARTPOLE = Workload(
    env_id="CartPole-v1",
    num_envs=8,
    num_steps=32,
    update_epochs=2,
    minibatch_size=64,
    total_env_steps=100_000,
    encoder_sizes=(64, 64, 128),
    head_sizes=(128,),
    activation="relu",
    learning_rate=1e-3,
    gamma=0.9,
    ent_coef=0.01,
    peers=("sb3", "skrl", "sheeprl", "cleanrl", "purejaxrl"),
)
CARTPOLE_WIDE = dataclasses.replace(
    CARTPOLE, num_envs=128, num_steps=128, update_epochs=4, minibatch_size=2048, total_env_steps=1_000_000
)
HALFCHEETAH = Workload(
    env_id="HalfCheetah-v5",
    num_envs=8,
    num_steps=256,
    update_epochs=10,
    minibatch_size=256,
    total_env_steps=100_000,
    encoder_sizes=(),
    head_sizes=(64, 64),
    activation="tanh",
    learning_rate=3e-4,
    gamma=0.99,
    ent_coef=0.0,
)
PONG = Workload(
    env_id="ALE/Pong-v5",
    num_envs=8,
    num_steps=128,
    update_epochs=4,
    minibatch_size=256,
    total_env_steps=20_480,
    encoder_sizes=(),
    head_sizes=(),
    activation="relu",
    learning_rate=2.5e-4,
    gamma=0.99,
    ent_coef=0.01,
    clip_coef=0.1,
    anneal_lr=True,
    clip_vloss=True,
    atari=True,
    peers=("sb3",),
)
MEMORY = Workload(  # configs/cartpole-memory.yaml
    env_id="CartPole-v1",
    components=(0, 2),
    num_envs=8,
    num_steps=128,
    update_epochs=4,
    minibatch_size=256,
    total_env_steps=102_400,
    encoder_sizes=(),
    memory_size=64,
    head_sizes=(64,),
    activation="tanh",
    learning_rate=1e-3,
    anneal_lr=True,
    gamma=0.98,
    ent_coef=0.0,
    peers=("sb3",),
)
TAXI = dataclasses.replace(  # configs/taxi.yaml
    MEMORY,
    env_id="Taxi-v4",
    components=(),
    memory_size=0,
    masked=True,
    num_envs=16,
    gamma=0.99,
    ent_coef=0.01,
)
MINIGRID = dataclasses.replace(  # configs/minigrid-dict.yaml
    TAXI,
    env_id="MiniGrid-DoorKey-5x5-v0",
    masked=False,
    keys=("direction", "image"),
    num_steps=64,
    total_env_steps=102_400,
    head_sizes=(64, 64),
)
WORKLOADS = {
    "cartpole": CARTPOLE,
    "cartpole-wide": CARTPOLE_WIDE,
    "halfcheetah": HALFCHEETAH,
    "pong": PONG,
    "memory": MEMORY,
    "taxi": TAXI,
    "minigrid": MINIGRID,
}
