"""What the report draws of reinforcement learning."""

from __future__ import annotations

from engine.stage.drawing import Curves, Gains

DRAWINGS = (
    Curves(
        ("reward", "kl", "entropy", "length", "explained_variance", "clip_fraction"),
        {
            "reward": "mean of the answers",
            "kl": "nats an answer",
            "entropy": "nats a token",
            "length": "tokens an answer",
            "explained_variance": "share",
            "clip_fraction": "share of tokens",
        },
        "iteration",
    ),
    Gains(
        title="Gold against proxy",
        note="The reward that was trained on (proxy) and a held-out score (gold), by how far the policy has moved. Where gold "
        "falls while the proxy rises, the policy learns the reward model's mistakes.",
        distance="kl",
        axis="distance from the reference, sqrt(KL) in nats",
        scores={"gold": ("gold",), "proxy": ("proxy", "score", "reward")},
    ),
)
