"""What the online recipes (PPO, GRPO) share: whose answers are sampled, about which questions, and what rates them."""
